"""Original RDM checkpoints become runs and go back, tensor for tensor."""

import argparse
import os
from pathlib import Path

import pytest
import torch

from rcg.core import pretrained
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import NETWORKS
from rcg.diffusion.model import restore
from rcg.encoding.run_folder import RunFolder
from tests.generators.originals import convert, listed_tensors, shapes
from tests.ideal import RecordedNoise
from tests.parity import DATA, recorded
from tests.toy import tool

KEYS = Path(__file__).parents[3].parent / "shared" / "parity" / "keys"
NAMES = ["vitb_simplemlp_l12_w1536", "vitb_simplemlp_l12_w1536_classcond", "vitl_simplemlp_l12_w1536_classcond"]


def restored(run):
    return restore(RunFolder(run).rdm.part(), NETWORKS)


@pytest.mark.parametrize("arm", ["uncond", "classcond"])
def test_a_converted_checkpoint_samples_the_recorded_trajectory(arm, tmp_path):
    convert("rdm", DATA / f"ckpt_rdm_{arm}.pth", tmp_path / "run")
    model = restored(tmp_path / "run")
    _, tensors = recorded(f"rdm_ddim_{arm}_S5_eta1")
    noise = RecordedNoise([tensors["in/x_T"], *tensors["aux/step_noise"]])
    sampler = model.config.sampler.with_steps(5)
    assert sampler.spacing == "rcg"
    with torch.no_grad():
        cond = tensors["in/y"] if arm == "classcond" else None
        sample = sampler(model.process, model.network, model.data, cond, noise)
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
    convert("rdm", original, tmp_path / "run")
    convert("rdm", tmp_path / "run", tmp_path / "back.pth", "--back")
    same(pretrained.read(original)["model"], pretrained.read(tmp_path / "back.pth")["model"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not KEYS.is_dir(), reason="lists of the published files' keys are not here")
@pytest.mark.parametrize("name", NAMES)
def test_full_size_files_convert_with_their_encoder_and_back(name, tmp_path):
    listed = listed_tensors(f"rdm_mocov3{name}", "cpu", KEYS)
    torch.save({"model": listed, "epoch": 199, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "full.pth")
    convert("rdm", tmp_path / "full.pth", tmp_path / "run")
    assert RunFolder(tmp_path / "run").rdm.part().facts.data.id.startswith("moco_v3:")
    convert("rdm", tmp_path / "run", tmp_path / "back.pth", "--back")
    back = pretrained.read(tmp_path / "back.pth")["model"]
    assert shapes(back) == shapes(listed)
    assert all(back[key].dtype == value.dtype for key, value in listed.items())


def test_a_converted_rdm_is_a_part_of_a_run(tmp_path):
    convert("rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run")
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
    convert("rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "run")
    again = tool("convert", "rdm", DATA / "ckpt_rdm_classcond.pth", tmp_path / "run")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    named = tool("convert", "rdm", DATA / "ckpt_rdm_uncond.pth", tmp_path / "other", "--name", "vq")
    assert named.returncode == 2
    assert "--name vq chooses between autoencoders" in named.stderr


def test_a_file_that_holds_code_is_refused(tmp_path):
    torch.save({"model": {}, "hook": os.system}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="pickled code is never loaded"):
        pretrained.read(tmp_path / "code.pth")
