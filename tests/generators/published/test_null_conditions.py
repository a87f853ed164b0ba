"""Converted checkpoints say whether a null condition was ever trained: guidance from another one is refused."""

import argparse

import pytest
import torch

from rcg.core import pretrained
from rcg.encoding.run_folder import RunFolder
from tests.generators.originals import convert
from tests.parity import DATA, state
from tests.recorded_mage import tiny
from tests.toy import complaint, tool

CASES = {
    "the rdm of classes": ("rdm", "ckpt_rdm_classcond.pth", {}, "rdm", 0.0),
    "adm": ("adm", lambda: state("adm_unet_tiny_rep"), {"image_size": 16, "num_head_channels": 16}, "adm", 0.0),
    "adm of classes": (
        "adm",
        lambda: state("adm_unet_tiny_class"),
        {"image_size": 16, "num_head_channels": 16},
        "adm-class",
        0.0,
    ),
    "dit": ("dit", lambda: state("dit_tiny_rep"), {}, "dit", 0.1),
    "dit without dropout": ("dit", lambda: state("dit_tiny_rep"), {"rep_drop_prob": 0.0}, "dit", 0.0),
    "the original dit": ("dit", lambda: without(state("dit_tiny_class"), "rep_embedder"), {}, "dit-class", 0.1),
    "mage": ("mage", tiny, {"rep_drop_prob": 0.1}, "mage", 0.1),
    "mage without dropout": ("mage", tiny, {"rep_drop_prob": 0.0}, "mage", 0.0),
    "mage of classes": ("mage", lambda: tiny("class"), {"rep_drop_prob": 0.1}, "mage-class", 0.0),
}


def without(tensors, word):
    return {key: value for key, value in tensors.items() if word not in key}


@pytest.mark.parametrize("as_saved", [lambda args: argparse.Namespace(**args), dict])
@pytest.mark.parametrize("case", CASES)
def test_the_header_says_how_often_the_null_was_trained(case, as_saved, tmp_path):
    kind, content, args, folder, dropout = CASES[case]
    path = DATA / content if isinstance(content, str) else tmp_path / "original.pth"
    if not isinstance(content, str):
        torch.save({"model": content(), "model_ema": None, "args": as_saved(args)}, path)
    convert(kind, path, tmp_path / "run", *(["--heads", 4] if kind == "dit" else []))
    part = RunFolder(tmp_path / "run").stage_folder(folder).part(weights=False)
    assert part.config["condition_dropout"] == dropout
    if folder == "dit":
        convert(kind, tmp_path / "run", tmp_path / "back.pth", "--back")
        assert torch.equal(pretrained.read(tmp_path / "back.pth")["model_ema"]["fake_latent"], content()["fake_latent"])


@pytest.mark.parametrize(
    ("case", "argument", "words"),
    [
        ("dit", {"rep_drop_prob": 2.0}, "rep_drop_prob is 2.0, not a share from 0 to 1"),
        ("mage", {"rep_drop_prob": "often"}, "rep_drop_prob is 'often', not a number"),
        ("adm", {"image_size": "big"}, "image_size is 'big', not a number"),
    ],
)
def test_arguments_that_are_no_numbers_are_refused(case, argument, words, tmp_path):
    kind, content, args, _, _ = CASES[case]
    saved = {"model": content(), "model_ema": None, "args": args | argument}
    torch.save(saved, tmp_path / "original.pth")
    heads = ["--heads", 4] if kind == "dit" else []
    assert words in complaint(tool("convert", kind, tmp_path / "original.pth", tmp_path / "run", *heads))
