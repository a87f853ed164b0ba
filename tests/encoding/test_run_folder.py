"""The layout of a run, and the refusals of a stage's folder."""

import pytest

from rcg.config import load_experiment, training_identity
from rcg.core import checkpoint
from rcg.core.checkpoint import Facts, Part, save_tensors
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from tests.toy import snapshot, write


def identity(experiment):
    return {"rdm": training_identity(experiment.rdm)}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path)


@pytest.fixture
def claimed(path, tmp_path):
    """A stage's folder that belongs to the toy experiment."""
    stage = StageFolder(tmp_path / "run" / "rdm")
    stage.claim(load_experiment(path), Mode.START, launch())
    return stage


@pytest.mark.parametrize("mode", Mode)
def test_a_folder_that_does_not_exist_or_is_empty_is_free(path, tmp_path, mode):
    stage = StageFolder(tmp_path / "run" / "rdm")
    stage.check(identity, load_experiment(path), mode)
    stage.path.mkdir(parents=True)
    stage.check(identity, load_experiment(path), mode)


def test_a_folder_of_this_experiment_needs_a_decision(path, claimed):
    experiment = load_experiment(path)
    with pytest.raises(UserError, match="already holds this experiment: go on with --resume, or start again with"):
        claimed.check(identity, experiment, Mode.START)
    save_tensors(claimed.state_file(120), {}, {})
    with pytest.raises(UserError, match="already holds step 120 of this experiment"):
        claimed.check(identity, experiment, Mode.START)
    claimed.check(identity, experiment, Mode.RESUME)
    claimed.check(identity, experiment, Mode.OVERWRITE)


@pytest.mark.parametrize("mode", [Mode.START, Mode.RESUME])
def test_a_folder_of_another_experiment_is_refused_with_what_changed(path, claimed, mode):
    other = load_experiment(path, ["rdm.depth=3", "rdm.train.weight_decay=1"])
    before = snapshot(claimed.path)
    with pytest.raises(
        UserError, match=r"another experiment \(rdm.train.weight_decay: 0.01 -> 1.0; rdm.depth: 2 -> 3\)"
    ):
        claimed.check(identity, other, mode)
    assert snapshot(claimed.path) == before
    claimed.check(identity, other, Mode.OVERWRITE)


def test_settings_that_change_no_finished_step_may_change(path, claimed):
    changes = ["rdm.train.steps=500", "rdm.train.lr=1e-5", "rdm.train.grad_clip=1", "rdm.train.precision=bf16"]
    changes += ["rdm.train.log_every=7", "rdm.sampler.name=ddpm", "rdm.guidance.scale=3"]
    claimed.check(identity, load_experiment(path, changes), Mode.RESUME)


@pytest.mark.parametrize("mode", Mode)
def test_a_folder_of_other_files_is_refused(path, tmp_path, mode):
    stage = StageFolder(tmp_path / "run" / "rdm")
    stage.path.mkdir(parents=True)
    (stage.path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not an experiment's: choose another run="):
        stage.check(identity, load_experiment(path), mode)
    assert (stage.path / "thesis.txt").read_text() == "mine"


def test_a_claim_writes_the_resolved_experiment_and_overwriting_deletes_the_rest(path, claimed):
    experiment = load_experiment(path)
    assert claimed.experiment() == experiment
    claimed.log.write_text("{}")
    claimed.claim(experiment, Mode.RESUME, launch())
    assert claimed.log.is_file()
    claimed.claim(experiment, Mode.OVERWRITE, launch())
    assert [file.name for file in claimed.path.iterdir()] == ["config.yaml"]


def trained(run, *names):
    for name in names:
        checkpoint.save(run.path / name / "model.safetensors", Part("generator", {"name": "dit"}, Facts(), {}))


def test_a_generator_is_chosen_by_name_or_because_it_is_the_only_one(tmp_path):
    run = RunFolder(tmp_path)
    trained(run, "encoder", "rdm", "autoencoder")
    with pytest.raises(UserError, match=r"holds no trained generator: run tools/train_pixel\.py first"):
        run.choose_generator(None)
    trained(run, "dit")
    assert run.choose_generator(None).path == tmp_path / "dit"
    trained(run, "dit-class")
    with pytest.raises(UserError, match=r"holds several generators \(dit, dit-class\): choose one with --generator"):
        run.choose_generator(None)
    assert run.choose_generator("dit-class").name == "dit-class"
    with pytest.raises(UserError, match="holds no generator 'dit-clas'; did you mean 'dit-class'"):
        run.choose_generator("dit-clas")


def test_logs_come_in_the_order_of_training(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="holds no trained stage"):
        run.logs()
    for name in ("dit", "rdm", "encoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "seconds": 1}\n{"step": 2, "seconds": 2}\n')
    assert list(run.logs()) == ["encoder", "rdm", "dit"]
    assert run.logs()["rdm"] == [{"step": 1, "seconds": 1}, {"step": 2, "seconds": 2}]


def test_states_are_files_of_one_name_newest_first(tmp_path):
    stage = StageFolder(tmp_path)
    assert stage.state_files() == []
    stage.states.mkdir()
    for name in ("step-000000090", "step-000000100", "step-1000000000"):
        (stage.states / f"{name}.safetensors").touch()
    for name in (".DS_Store", "step-x.safetensors", "step-.safetensors", "step-000000200", "notes.txt"):
        (stage.states / name).touch()
    (stage.states / ".writing-host-1-x").mkdir()
    assert [stage.step_of(path) for path in stage.state_files()] == [1_000_000_000, 100, 90]


def test_a_model_without_a_state_is_not_trained_over(path, claimed):
    checkpoint.save(claimed.checkpoint, Part("rdm", {}, Facts(step=20), {}))
    before = snapshot(claimed.path)
    with pytest.raises(UserError, match=r"model.safetensors is of step 20, but .*state holds no state to go on from"):
        claimed.check(identity, load_experiment(path), Mode.RESUME)
    assert snapshot(claimed.path) == before
    claimed.check(identity, load_experiment(path), Mode.OVERWRITE)


def test_a_state_of_an_older_version_is_named_and_not_opened(path, claimed):
    old = claimed.states / "step-000000120"
    old.mkdir(parents=True)
    (old / "custom_checkpoint_0.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="step-000000120 was written by an older version of rcg, and is not opened"):
        claimed.check(identity, load_experiment(path), Mode.RESUME)
    claimed.claim(load_experiment(path), Mode.OVERWRITE, launch())
    assert not claimed.states.exists()


@pytest.mark.parametrize("mode", Mode)
def test_a_file_in_the_place_of_the_folder_is_refused(path, tmp_path, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rdm").write_text("mine")
    with pytest.raises(UserError, match="rdm is a file, but a folder is needed"):
        StageFolder(tmp_path / "run" / "rdm").check(identity, load_experiment(path), mode)


def test_overwriting_deletes_what_a_training_leaves_and_nothing_else(path, claimed):
    experiment = load_experiment(path)
    claimed.samples.mkdir()
    (claimed.path / "thesis.txt").write_text("mine")
    save_tensors(claimed.state_file(120), {}, {})
    claimed.log.write_text("{}")
    claimed.claim(experiment, Mode.OVERWRITE, launch())
    assert {file.name for file in claimed.path.iterdir()} == {"config.yaml", "thesis.txt"}


def test_overwriting_works_through_a_link_to_the_folder(path, claimed, tmp_path):
    save_tensors(claimed.state_file(120), {}, {})
    moved = claimed.path.rename(tmp_path / "elsewhere")
    claimed.path.symlink_to(moved)
    claimed.claim(load_experiment(path), Mode.OVERWRITE, launch())
    assert claimed.state_files() == []
    assert [file.name for file in moved.iterdir()] == ["config.yaml"]


def test_overwriting_a_link_to_states_leaves_what_it_leads_to(path, claimed, tmp_path):
    (tmp_path / "scratch").mkdir()
    claimed.states.symlink_to(tmp_path / "scratch")
    save_tensors(claimed.state_file(120), {}, {})
    claimed.claim(load_experiment(path), Mode.OVERWRITE, launch())
    assert claimed.state_files() == []
    assert len(list((tmp_path / "scratch").iterdir())) == 1


def test_a_converted_part_may_be_replaced(path, tmp_path):
    stage = StageFolder(tmp_path / "run" / "rdm")
    checkpoint.save(stage.checkpoint, Part("rdm", {}, Facts(), {}))
    stage.check(identity, load_experiment(path), Mode.OVERWRITE)
    with pytest.raises(UserError, match="holds files that are not an experiment's"):
        stage.check(identity, load_experiment(path), Mode.RESUME)


def test_a_torn_line_of_a_log_is_left_out(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "rdm").mkdir()
    log = tmp_path / "rdm" / "log.jsonl"
    log.write_bytes(b'{"step": 1, "seconds": 0.1, "mse": null}\n3\n{"step": 2, "sec\n{"step": 3, "mse": 2\xff')
    assert run.logs() == {"rdm": [{"step": 1, "seconds": 0.1}]}
    log.write_bytes(b'{"st')
    with pytest.raises(UserError, match="holds no trained stage"):
        run.logs()
