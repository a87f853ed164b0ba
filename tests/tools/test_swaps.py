"""Swapping one name in one file: every generator works with the representations of every kind of encoder."""

import shutil

import pytest

from tests.toy import TOKENIZER, tool, train, write

ENCODERS = {
    "moco_v3": {},
    "timm_model": {"encoder.model": "resnet10t", "encoder.weights": "none", "encoder.input_size": 32},
    "vicreg": {"encoder.weights": "none", "encoder.input_size": 32},
}
KL = {key: value for key, value in TOKENIZER.items() if key != "quantizer"} | {"name": "kl"}
GENERATORS = {
    "dit": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
    "adm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "head_width": 8},
    "ldm": {"width": 16, "multipliers": [1, 2], "blocks": 1, "head_width": 8, "autoencoder": KL},
    "mage": {"width": 16, "depth": 1, "decoder_depth": 1, "heads": 2, "decoder_heads": 2, "autoencoder": TOKENIZER},
}
PLAIN = {"precision": "no", "tracker": "none", "batch_size": 8}
STEPS = ["encoder.train.steps=2", "rdm.train.steps=2", "generator.train.steps=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run for each encoder, with an RDM."""
    folders = {}
    for name, options in ENCODERS.items():
        path = write(tmp_path_factory.mktemp(name), data__limit=40)
        swap = [f"encoder.name={name}", *(f"{key}={value}" for key, value in options.items())]
        for stage in ("encoder", "rdm") if name == "moco_v3" else ("rdm",):
            train(stage, path, *swap, *STEPS)
        folders[name] = (path, swap)
    return folders


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_generator_works_with_every_encoder(runs, encoder, generator, tmp_path):
    path, swap = runs[encoder]
    shutil.copytree(path.parent / "run", tmp_path / "run")
    here = write(tmp_path, data__limit=40, generator={"name": generator, **GENERATORS[generator], "train": PLAIN})
    for stage in ["generator"] if generator in ("dit", "adm") else ["autoencoder", "generator"]:
        train(stage, here, *swap, *STEPS)
    done = tool("sample", tmp_path / "run", "--num", 2, "--steps", 2, "--rdm-steps", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "gallery.png").stat().st_size > 500
