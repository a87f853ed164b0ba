"""Trainings that start from given weights: what fits is loaded, what does not is named, and too little is refused."""

import shutil

import pytest
import torch

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.training.stages import STAGES
from tests.toy import KL, snapshot, train, write

AUTOENCODER = KL | {"train": KL["train"] | {"perceptual": "none", "steps": 0, "ema_decay": None}}
SECTIONS = {"encoder": "encoder", "autoencoder": "generator.autoencoder", "rdm": "rdm", "generator": "generator"}
UNTRAINED = {f"{section}__train__steps": 0 for section in ("encoder", "rdm", "generator")}


@pytest.fixture
def fresh(toy_run, tmp_path):
    """An experiment with the toy's encoder and RDM, whose trainings take no step."""
    for stage in ("encoder", "rdm"):
        shutil.copytree(toy_run / "run" / stage, tmp_path / "run" / stage)
    return write(tmp_path, generator__autoencoder=AUTOENCODER, generator__patch=2, **UNTRAINED)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_starts_from_the_part_of_a_run(fresh, tmp_path, stage, capsys):
    other = ("seed=5", f"run={tmp_path / 'other'}")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    if stage == "generator":
        train("autoencoder", fresh)
        shutil.copytree(tmp_path / "run" / "autoencoder", tmp_path / "other" / "autoencoder")
    source = train(stage, fresh, *other, mode=Mode.OVERWRITE)
    places = (source.path.parent, source.path, source.checkpoint) if stage == "rdm" else (source.path.parent,)
    for where in places:
        capsys.readouterr()
        started = train(stage, fresh, f"{SECTIONS[stage]}.train.init_from={where}", mode=Mode.OVERWRITE)
        tensors = started.part().tensors
        for name, value in source.part().tensors.items():
            torch.testing.assert_close(tensors[name], value, msg=name)
        assert f"starts with {len(tensors)} of {len(tensors)} tensors" in capsys.readouterr().out


def test_an_embedding_of_other_classes_starts_at_random_and_is_named(fresh, tmp_path, capsys):
    source = train("rdm", fresh, "rdm.condition=class", f"run={tmp_path / 'other'}", "encoder.weights=none")
    part = source.part()
    capsys.readouterr()
    path = tmp_path / "start.safetensors"
    part.tensors["network.label.embed.weight"] = part.tensors["network.label.embed.weight"][:4]
    facts = part.facts.model_copy(update={"classes": ("a", "b", "c")})
    checkpoint.save(path, checkpoint.Part(part.kind, part.config, facts, part.tensors))
    started = train("rdm", fresh, "rdm.condition=class", f"rdm.train.init_from={path}", mode=Mode.OVERWRITE).part()
    said = capsys.readouterr().out
    assert "at random start network.label.embed.weight (it is (4, " in said
    assert "classes: 3 -> 10" in said
    assert "data: moco_v3:" in said  # the representations of another encoder
    assert torch.equal(started.tensors["network.input.weight"], part.tensors["network.input.weight"])


@pytest.mark.parametrize("mode", [Mode.START, Mode.OVERWRITE])
@pytest.mark.parametrize(
    ("stage", "changes", "sentence"),
    [
        ("rdm", ["rdm.train.init_from=nowhere"], "rdm.train.init_from is nowhere, which is not there"),
        ("rdm", ["rdm.train.init_from=SOURCE/run/encoder"], "which holds a encoder, not a rdm"),
        ("rdm", ["rdm.train.init_from=SOURCE/run", "rdm.width=64"], r"only \d+% of this rdm can be made: network"),
        ("rdm", ["rdm.train.init_from=SOURCE/run", "rdm.name=skip_mlp"], "holds a rep_mlp: set rdm.name=rep_mlp"),
        ("rdm", ["rdm.train.init_from=SOURCE/toy.yaml"], "convert a published file first .python tools/convert.py rdm"),
        ("generator", ["generator.train.init_from=SOURCE/toy.yaml"], r"tools/convert.py dit FILE RUN"),
        (
            "encoder",
            ["encoder.train.init_from=SOURCE/run", "encoder.width=8"],
            r"only \d+% of this encoder can be made",
        ),
        ("encoder", ["encoder.train.init_from=SOURCE/run/rdm"], "which holds a rdm, not a encoder"),
    ],
)
def test_weights_that_cannot_be_the_start_are_refused_before_anything_is_written(
    toy_run, toy_copy, tmp_path, stage, changes, sentence, mode
):
    if mode == Mode.START:
        shutil.rmtree(tmp_path / "run" / {"generator": "dit"}.get(stage, stage))
        if stage == "encoder":
            shutil.rmtree(tmp_path / "run")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=sentence):
        train(stage, toy_copy, *(text.replace("SOURCE", str(toy_run)) for text in changes), mode=mode)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", ["encoder", "rdm", "generator"])
def test_weights_in_the_folder_that_is_overwritten_are_no_start(toy_copy, tmp_path, stage):
    folder = STAGES[stage].folder(load_experiment(toy_copy))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"copy the file to another place first"):
        train(stage, toy_copy, f"{stage}.train.init_from={folder.checkpoint}", mode=Mode.OVERWRITE)
    assert snapshot(tmp_path) == before


def test_a_run_goes_on_from_its_own_state_not_from_where_it_started(toy_run, tmp_path):
    shutil.copytree(toy_run / "run" / "encoder", tmp_path / "run" / "encoder")
    source = tmp_path / "source.safetensors"
    shutil.copy(toy_run / "run" / "rdm" / "model.safetensors", source)
    path = write(tmp_path, rdm__train__init_from=str(source))
    assert train("rdm", path).part().facts.step == 20
    source.unlink()
    resumed = train("rdm", path, "rdm.train.steps=22", mode=Mode.RESUME)
    assert resumed.part().facts.step == 22
    with pytest.raises(UserError, match=r"rdm\.train\.init_from"):
        train("rdm", path, "rdm.train.init_from=null", mode=Mode.RESUME)
    assert RunFolder(tmp_path / "run").rdm.part().facts.step == 22


def test_layers_without_a_place_are_named(fresh, toy_run, capsys):
    train("rdm", fresh, "rdm.depth=1", f"rdm.train.init_from={toy_run / 'run' / 'rdm'}", mode=Mode.OVERWRITE)
    assert "without a place here are network.blocks.1." in capsys.readouterr().out
