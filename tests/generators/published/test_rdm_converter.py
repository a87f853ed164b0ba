"""Original RDM checkpoints become runs and go back, tensor for tensor."""

import argparse
from pathlib import Path

import pytest
import torch

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS
from rcg.diffusion.samplers.ddim import DDIM
from rcg.pipeline import restore
from tests.parity import DATA, recorded
from tests.toy import tool

KEYS = Path(__file__).parents[3].parent / "shared" / "parity" / "keys"
NAMES = ["vitb_simplemlp_l12_w1536", "vitb_simplemlp_l12_w1536_classcond", "vitl_simplemlp_l12_w1536_classcond"]


def restored(run):
    return restore(checkpoint.load(run / "rdm" / checkpoint.FILE), NETWORKS)


@pytest.mark.parametrize("arm", ["uncond", "classcond"])
def test_a_converted_checkpoint_walks_the_recorded_trajectory(arm, tmp_path):
    assert tool("convert", "rdm", DATA / f"ckpt_rdm_{arm}.pth", tmp_path / "run").returncode == 0
    model = restored(tmp_path / "run")
    _, tensors = recorded(f"rdm_ddim_{arm}_S5_eta1")
    draws = iter([tensors["in/x_T"], *tensors["aux/step_noise"]])

    class Recorded:
        def normal(self, shape):
            return next(draws)

    config = model.config.sampler.model_copy(update={"steps": 5})
    assert config.spacing == "rcg"
    with torch.no_grad():
        cond = tensors["in/y"] if arm == "classcond" else None
        sample = DDIM(config)(model.process, model.network, model.data, cond, Recorded())
    torch.testing.assert_close(sample, tensors["out/sample"], atol=1e-4, rtol=1e-4)


def same(before, after):
    assert set(before) == set(after)
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-7, msg=key)
        if key.startswith(("model", "cond", "pretrained")):
            assert torch.equal(after[key], value), key


@pytest.mark.parametrize("arm", ["uncond", "classcond"])
def test_there_and_back_gives_every_tensor(arm, tmp_path):
    original = DATA / f"ckpt_rdm_{arm}.pth"
    assert tool("convert", "rdm", original, tmp_path / "run").returncode == 0
    assert tool("convert", "rdm", tmp_path / "run", tmp_path / "back.pth", "--back").returncode == 0
    same(weights.read(original)["model"], weights.read(tmp_path / "back.pth")["model"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not KEYS.is_dir(), reason="lists of the published files' keys are not here")
@pytest.mark.parametrize("name", NAMES)
def test_full_size_files_convert_with_their_encoder_and_back(name, tmp_path):
    listed = {}
    for line in (KEYS / f"rdm_mocov3{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, dtype = line.split("\t")
            sizes = [int(n) for n in shape.strip("()").split(",") if n.strip()]
            listed[key] = torch.tensor(0.5).to(getattr(torch, dtype)).expand(sizes)
    torch.save({"model": listed, "epoch": 199, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "full.pth")
    converted = tool("convert", "rdm", tmp_path / "full.pth", tmp_path / "run")
    assert converted.returncode == 0, converted.stderr
    part = checkpoint.load(tmp_path / "run" / "rdm" / checkpoint.FILE)
    assert part.facts["data"]["id"].startswith("moco_v3:")
    assert tool("convert", "rdm", tmp_path / "run", tmp_path / "back.pth", "--back").returncode == 0
    back = weights.read(tmp_path / "back.pth")["model"]
    assert {key: (value.shape, value.dtype) for key, value in back.items()} == {
        key: (value.shape, value.dtype) for key, value in listed.items()
    }


def test_a_converted_rdm_is_a_part_of_a_run(tmp_path):
    tool("convert", "rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run")
    model = restored(tmp_path / "run")
    assert isinstance(model.data, Space)
    assert not (tmp_path / "run" / "dit").exists()


def test_mistakes_touch_nothing(tmp_path):
    moco = tool("convert", "rdm", DATA / "ckpt_moco_tiny.pth.tar", tmp_path / "run")
    assert moco.returncode == 2
    assert "is not an RDM checkpoint" in moco.stderr
    assert not (tmp_path / "run").exists()
    unknown = tool("convert", "rdn", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run")
    assert "no converter is called 'rdn'; did you mean 'rdm'" in unknown.stderr
    tool("convert", "rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run")
    again = tool("convert", "rdm", DATA / "ckpt_rdm_classcond.pth", tmp_path / "run")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_file_that_holds_code_is_refused(tmp_path):
    torch.save({"model": {}, "hook": Path}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="pickled code is never loaded"):
        weights.read(tmp_path / "code.pth")
