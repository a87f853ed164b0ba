"""The state that a training goes on from: two of them, checked before use, and without pickled code."""

import builtins
import io
import pickle

import pytest
import torch
from safetensors.torch import save_file

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part
from rcg.core.errors import UserError
from rcg.encoding.run_folder import StageFolder
from tests.line import Line, config_for, log, run
from tests.toy import snapshot

CONFIG = config_for(steps=30, save_every=10, log_every=10, ema_decay=0.9)
WEIGHT = "optimizer/line/weight"


def edited(numbers=None, **tensors):
    """Return what replaces numbers or tensors of a state, and leaves the file whole."""

    def edit(path):
        found, facts = checkpoint.load_tensors(path)
        found = {name: tensor for name, tensor in (found | tensors).items() if tensor is not None}
        checkpoint.save_tensors(path, found, facts | (numbers or {}))

    return edit


DAMAGES = {
    "nothing": (lambda path: path.write_bytes(b""), "truncated"),
    "a part of a header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "truncated"),
    "a part of the tensors": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"step": 20})), "not a safetensors file"),
    "foreign weights": (lambda path: save_file({"w": torch.zeros(1)}, path), "not written by rcg"),
    "a part": (lambda path: checkpoint.save(path, Part("line", {}, Facts(), {})), "is a trained part"),
    "no numbers": (edited({"progress": None}), "not the state of a training"),
    "unknown numbers": (edited({"scheduler": 3}), "not the state of a training"),
    "another step": (edited({"progress": {"step": 7}}), "is the state of step 7: it was renamed"),
    "negative seconds": (edited({"progress": {"step": 20, "seconds": -1}}), "not the state of a training"),
    "other averages": (edited({"updates": {}}), "has averages of nothing"),
    "a weight too few": (edited(**{"module/line/weight": None}), "has no tensor module/line/weight"),
    "a weight too many": (edited(extra=torch.zeros(1)), "has a tensor extra"),
    "half an optimizer": (edited(**{f"{WEIGHT}/exp_avg": None}), f"has no tensor {WEIGHT}/exp_avg"),
    "another shape": (edited(**{"module/line/weight": torch.zeros(2, 1)}), r"is \(2, 1\) torch.float32, not \(1, 1\)"),
    "doubles": (edited(**{"module/line/weight": torch.zeros(1, 1).double()}), "torch.float64, not .* torch.float32"),
    "what is no number": (
        edited(**{f"{WEIGHT}/exp_avg_sq": torch.full((1, 1), torch.nan)}),
        "exp_avg_sq holds values that are infinite or no numbers",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(Line(), CONFIG, folder)
    return StageFolder(folder)


@pytest.fixture
def half(tmp_path):
    """The folder of a training that has two states and more steps to take."""
    run(Line(), CONFIG.model_copy(update={"steps": 20}), tmp_path)
    return StageFolder(tmp_path)


def test_a_state_is_one_safetensors_file_and_the_two_newest_stay(half):
    (half.states / ".DS_Store").write_bytes(b"\0Bud1")
    run(Line(), CONFIG, half.path)
    names = {path.name for path in half.states.iterdir()}
    assert names == {"step-000000030.safetensors", "step-000000020.safetensors", ".DS_Store"}


def test_nothing_is_unpickled_when_a_training_goes_on(half, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    class Unpickler:
        __init__ = refuse

    monkeypatch.setattr(torch, "load", refuse)
    for name in ("load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    opened, real = [], io.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"):
        (half.states / "step-000000025").mkdir(exist_ok=True)
        (half.states / "step-000000025" / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert run(Line(), CONFIG, half.path).step == 30
    assert not any("step-000000025" in path for path in opened)


@pytest.mark.parametrize("damage", ["a part of the tensors", "a weight too few"])
def test_an_older_state_takes_the_place_of_a_damaged_one(half, whole, damage, capsys):
    DAMAGES[damage][0](half.state_file(20))
    run(Line(), CONFIG, half.path)
    warning = capsys.readouterr().err
    assert f"warning: {half.state_file(20)}" in warning
    assert "trying step-000000010.safetensors, which is older" in warning
    assert all(torch.equal(value, half.part().tensors[name]) for name, value in whole.part().tensors.items())
    assert log(half.path) == log(whole.path)
    assert [half.step_of(path) for path in half.state_files()] == [30, 20]


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_another_state_a_damaged_one_is_refused_by_name(half, damage):
    spoil, sentence = DAMAGES[damage]
    half.state_file(10).unlink()
    spoil(half.state_file(20))
    before = snapshot(half.path)
    with pytest.raises(UserError, match=rf"step-000000020.safetensors.*{sentence}.*no other state: start again with"):
        run(Line(), CONFIG, half.path)
    assert snapshot(half.path) == before


def test_a_state_of_other_averages_does_not_fit(half):
    half.state_file(10).unlink()
    with pytest.raises(UserError, match="does not fit this training: it has a tensor average/line/bias"):
        run(Line(), CONFIG.model_copy(update={"ema_decay": None}), half.path)
