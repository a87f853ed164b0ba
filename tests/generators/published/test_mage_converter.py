"""Original MAGE checkpoints become runs and go back, tensor for tensor."""

import pytest
import torch

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Part
from rcg.encoding.run_folder import RunFolder
from tests.generators.originals import convert, listed_tensors, shapes
from tests.recorded_mage import published, save, tiny
from tests.toy import tool


@pytest.mark.parametrize("condition", ["representation", "class", "none"])
def test_there_and_back_gives_every_tensor(condition, tmp_path):
    original = tiny(condition)
    convert("mage", save(original, tmp_path / "tiny.pth"), tmp_path / "run")
    convert("mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    back = pretrained.read(tmp_path / "back.pth")["model"]
    assert set(back) == set(original)
    for key, value in original.items():
        assert value.dtype == back[key].dtype, key
        assert torch.equal(value, back[key]), key


def test_a_mage_that_was_not_converted_cannot_go_back(tmp_path):
    convert("mage", save(tiny(), tmp_path / "tiny.pth"), tmp_path / "run")
    RunFolder(tmp_path / "run").stage_folder("mage").original.unlink()
    refused = tool("convert", "mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    assert refused.returncode == 2
    assert "only what was converted" in refused.stderr
    assert not (tmp_path / "back.pth").exists()


def test_a_mage_that_was_trained_further_goes_back(tmp_path):
    convert("mage", save(tiny(), tmp_path / "tiny.pth"), tmp_path / "run")
    stage = RunFolder(tmp_path / "run").stage_folder("mage")
    part = stage.part()
    moved = {key: value + 1 for key, value in part.tensors.items()}
    checkpoint.save(stage.checkpoint, Part(part.kind, part.config, part.facts, moved))
    convert("mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    back, original = pretrained.read(tmp_path / "back.pth")["model"], tiny()
    tables = {"token_emb.word_embeddings.weight", "mlm_layer.bias"}  # with rows that ours lacks
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
    if condition == "class":  # the null label, which was never trained, is zero
        assert model.network.cond.embed.weight.abs().amax(1).tolist()[998:] == [998 * 32 + 31, 999 * 32 + 31, 0]


def test_mistakes_touch_nothing(tmp_path):
    foreign = {**tiny(), "token_emb.word_embeddings.weight": torch.zeros(1049, 40)}
    refused = tool("convert", "mage", save(foreign, tmp_path / "foreign.pth"), tmp_path / "run")
    assert refused.returncode == 2
    assert "a width of 40, but published MAGEs have one of 768, 1024, 1280" in refused.stderr
    refused = tool("convert", "mage", save({"a": torch.zeros(1)}, tmp_path / "other.pth"), tmp_path / "run")
    assert "is not a MAGE checkpoint" in refused.stderr
    assert not (tmp_path / "run").exists()
    path = save(tiny("class"), tmp_path / "class.pth")
    convert("mage", path, tmp_path / "run")
    assert "mage-class is there already" in tool("convert", "mage", path, tmp_path / "run").stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_files_convert_and_back(size, tmp_path):
    listed = listed_tensors(f"mage_vit_{size}_patch16", device="cpu")
    convert("mage", save(listed, tmp_path / "full.pth"), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    part = run.stage_folder("mage").part()
    assert part.facts.cond.id.startswith("moco_v3:")
    convert("mage", tmp_path / "run", tmp_path / "back.pth", "--back")
    assert run.autoencoder.part().config["quantizer"]["codes"] == part.facts.data.vocab == 1024
    back = pretrained.read(tmp_path / "back.pth")["model"]
    assert shapes(back) == shapes(listed)
    assert all(back[key].dtype == value.dtype for key, value in listed.items())
