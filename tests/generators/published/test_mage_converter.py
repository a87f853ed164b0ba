"""Original MAGE checkpoints become runs and go back, tensor for tensor."""

import argparse
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from rcg.generators.published.mage import SIZES, Size

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.registry import GENERATORS
from rcg.pipeline import restore
from tests.parity import DATA, state
from tests.toy import tool

SIZES[32] = Size(4, 2, 6.0)  # the recorded network


def tiny(condition="representation"):
    """Return the recorded network's state, told something else if asked; its encoder has heads of no published size."""
    found = {k: v for k, v in state("mage_train_forward").items() if not k.startswith("pretrained_encoder.")}
    if condition != "representation":
        for name in ("weight", "bias"):
            del found[f"latent_prior_proj.{name}"]
    if condition == "class":
        found["class_emb.weight"] = torch.arange(32000.0).view(1000, 32)
    return found | {f"vqgan.{key}": value for key, value in state("mage_vqgan_tiny").items()}


def save(tensors, path):
    torch.save({"model": tensors, "model_ema": None, "epoch": 199, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


@cache
def converted(condition="representation"):
    """Return the parts of the recorded checkpoint: mage and its tokenizer."""
    with TemporaryDirectory() as folder:
        path = save(tiny(condition), Path(folder) / "tiny.pth")
        done = tool("convert", "mage", path, Path(folder) / "run")
        assert done.returncode == 0, done.stderr
        arm = "mage" if condition == "representation" else f"mage-{condition}"
        return tuple(checkpoint.load(Path(folder) / "run" / name / checkpoint.FILE) for name in (arm, "autoencoder"))


def published(condition="representation"):
    """Return the recorded MAGE, converted, without dropout."""
    model = restore(converted(condition)[0], GENERATORS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_there_and_back_gives_every_tensor(condition, tmp_path):
    original = tiny(condition)
    save(original, tmp_path / "tiny.pth")
    assert tool("convert", "mage", tmp_path / "tiny.pth", tmp_path / "run").returncode == 0
    back = tool("convert", "mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    assert back.returncode == 0, back.stderr
    found = weights.read(tmp_path / "back.pth")["model"]
    assert set(found) == set(original)
    for key, value in original.items():
        assert value.dtype == found[key].dtype, key
        assert torch.equal(value, found[key]), key


def test_a_mage_that_was_not_converted_has_nothing_to_go_back_to(tmp_path):
    save(tiny(), tmp_path / "tiny.pth")
    assert tool("convert", "mage", tmp_path / "tiny.pth", tmp_path / "run").returncode == 0
    (tmp_path / "run" / "mage" / "original.safetensors").unlink()
    said = tool("convert", "mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    assert said.returncode == 2
    assert "only what was converted" in said.stderr
    assert not (tmp_path / "back.pth").exists()


def test_what_was_trained_further_goes_back_too(tmp_path):
    save(tiny(), tmp_path / "tiny.pth")
    assert tool("convert", "mage", tmp_path / "tiny.pth", tmp_path / "run").returncode == 0
    path = tmp_path / "run" / "mage" / checkpoint.FILE
    part = checkpoint.load(path)
    checkpoint.save(
        path, checkpoint.Part(part.kind, part.config, part.facts, {k: v + 1 for k, v in part.tensors.items()})
    )
    assert tool("convert", "mage", tmp_path / "run", tmp_path / "back.pth", "--back").returncode == 0
    back, original = weights.read(tmp_path / "back.pth")["model"], tiny()
    tables = {"token_emb.word_embeddings.weight", "mlm_layer.bias"}  # with rows that ours has not
    moved = {key for key in original if torch.equal(back[key], original[key] + 1)} | tables
    assert moved == {key for key in original if not torch.equal(back[key], original[key])}
    assert len(moved) == len(part.tensors)
    unused = [*range(48, 124), *range(125, 1048)]
    assert torch.equal(
        back["token_emb.word_embeddings.weight"][unused], original["token_emb.word_embeddings.weight"][unused]
    )


@pytest.mark.parametrize(("condition", "space"), [("representation", (12,)), ("class", ()), ("none", None)])
def test_the_condition_is_read_off_the_tensors(condition, space):
    model = published(condition)
    assert model.config.condition == condition
    assert (None if model.cond is None else model.cond.shape) == space
    assert model.data.shape == (16, 16)
    assert model.data.vocab == 48
    if condition == "class":  # the null label, which was never trained, says nothing
        assert model.network.cond.embed.weight.abs().amax(1).tolist()[998:] == [998 * 32 + 31, 999 * 32 + 31, 0]


def test_mistakes_touch_nothing(tmp_path):
    foreign = {**tiny(), "token_emb.word_embeddings.weight": torch.zeros(1049, 40)}
    said = tool("convert", "mage", save(foreign, tmp_path / "foreign.pth"), tmp_path / "run")
    assert said.returncode == 2
    assert "a width of 40, but published MAGEs have one of 768, 1024, 1280" in said.stderr
    said = tool("convert", "mage", save({"a": torch.zeros(1)}, tmp_path / "other.pth"), tmp_path / "run")
    assert "is not a MAGE checkpoint" in said.stderr
    assert not (tmp_path / "run").exists()
    path = save(tiny("class"), tmp_path / "class.pth")
    assert tool("convert", "mage", path, tmp_path / "run").returncode == 0
    assert "mage-class is there already" in tool("convert", "mage", path, tmp_path / "run").stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_files_convert_and_back(size, tmp_path):
    listed = {}
    for line in (DATA / "keys" / f"mage_vit_{size}_patch16.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, dtype = line.split("\t")
            sizes = [int(n) for n in shape.strip("()").split(",") if n.strip()]
            listed[key] = torch.tensor(0.5).to(getattr(torch, dtype)).expand(sizes)
    converted = tool("convert", "mage", save(listed, tmp_path / "full.pth"), tmp_path / "run")
    assert converted.returncode == 0, converted.stderr
    part = checkpoint.load(tmp_path / "run" / "mage" / checkpoint.FILE)
    assert part.facts["cond"]["id"].startswith("moco_v3:")
    assert tool("convert", "mage", tmp_path / "run", tmp_path / "back.pth", "--back").returncode == 0
    tokens = checkpoint.load(tmp_path / "run" / "autoencoder" / checkpoint.FILE)
    assert tokens.config["quantizer"]["codes"] == part.facts["data"]["vocab"] == 1024
    back = weights.read(tmp_path / "back.pth")["model"]
    assert {key: (value.shape, value.dtype) for key, value in back.items()} == {
        key: (value.shape, value.dtype) for key, value in listed.items()
    }
