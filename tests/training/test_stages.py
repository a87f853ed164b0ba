"""Every refusal of a training comes before the first write into the folder of its stage."""

import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file

import rcg
from rcg.config import load_experiment, resolve_epochs
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from rcg.encoding.workspace import Workspace
from rcg.training.stages import STAGES, run_stage
from tests.toy import ROOT, TOKENIZER, snapshot, train, write

AUTOENCODER = {**TOKENIZER, "train": {**TOKENIZER["train"], "perceptual": "none"}}
KL = {key: value for key, value in AUTOENCODER.items() if key != "quantizer"} | {"name": "kl"}
TIMM = "encoder={name: timm_model, model: resnet10t, input_size: 32}"
UNLABELED = "data={name: image_folder, root: ROOT, image_size: 16}"

REFUSALS = {
    "a batch that cannot be shared": ("rdm", ["rdm.train.grad_accum_steps=3"], "nearest that fits is 33"),
    "an encoder with weights": ("encoder", ["encoder.weights=none"], "so there is nothing to train"),
    "an encoder that is always frozen": ("encoder", [TIMM], "so there is nothing to train: go on with tools/train_rdm"),
    "no autoencoder to train": ("autoencoder", [], "'pixels', which has nothing to train"),
    "an autoencoder with weights": (
        "autoencoder",
        ["generator.autoencoder={name: kl, weights: a.pt}"],
        "generator.autoencoder.weights is 'a.pt', so there is nothing to train",
    ),
    "a perceptual loss without its encoder": (
        "autoencoder",
        [f"generator.autoencoder={TOKENIZER}", "encoder.depth=2"],
        r"holds another encoder .*; or set generator\.autoencoder\.train\.perceptual to vgg or none",
    ),
    "an RDM of another encoder": ("rdm", ["encoder.depth=2"], r"holds another encoder \(encoder.depth: 1 -> 2\)"),
    "an RDM of classes without labels": ("rdm", [UNLABELED, "rdm.condition=class"], "the data set has no labels"),
    "an RDM of too few vectors": (
        "rdm",
        ["rdm.condition=vector", "rdm.vectors=FOLDER/vectors.safetensors"],
        "holds 3 vectors, but the data set has 1797 images",
    ),
    "an RDM's sampler with more steps than levels": (
        "rdm",
        ["rdm.sampler.steps=2000"],
        "sampler.steps is 2000, but the process has 1000 noise levels",
    ),
    "an RDM's sampler that its process cannot follow": (
        "rdm",
        ["rdm.process.name=flow", "rdm.sampler.spacing=leading"],
        "a flow starts at pure noise: use trailing",
    ),
    "a network that does not fit its data": ("generator", ["generator.patch=5"], "does not divide the side 16"),
    "a sampler with more steps than levels": (
        "generator",
        ["generator.sampler.steps=2000"],
        "sampler.steps is 2000, but the process has 1000 noise levels",
    ),
    "a generator that is not there": ("generator", ["generator=null"], "the experiment ends with its RDM"),
    "a generator of other representations than the RDM's": (
        "generator",
        ["normalize=none"],
        r"train the RDM again \(tools/train_rdm\.py --overwrite\) or choose another run=",
    ),
    "a generator without its autoencoder": (
        "generator",
        [f"generator.autoencoder={KL}"],
        "holds no trained autoencoder and generator.autoencoder.weights names none",
    ),
    "a generator of classes without labels": (
        "generator",
        [UNLABELED, "generator.condition=class"],
        "condition is class, but the data set has no labels",
    ),
}


@pytest.fixture
def writes(monkeypatch):
    """The stages whose folders were claimed for a training; a refused one must not be among them."""
    claimed, claim = [], StageFolder.claim

    def note(folder, *arguments):
        claimed.append(folder.name)
        claim(folder, *arguments)

    monkeypatch.setattr(StageFolder, "claim", note)
    return claimed


@pytest.mark.parametrize("mode", [Mode.START, Mode.OVERWRITE])
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_comes_before_the_first_write(toy_copy, tmp_path, writes, case, mode):
    name, overrides, sentence = REFUSALS[case]
    save_file({"vectors": torch.zeros(3, 2)}, tmp_path / "vectors.safetensors")
    (tmp_path / "images").mkdir()
    shutil.copy(next((tmp_path / "run" / "dit" / "samples").glob("*.png")), tmp_path / "images" / "a.png")
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "b.png")
    overrides = [text.replace("ROOT", str(tmp_path / "images")).replace("FOLDER", str(tmp_path)) for text in overrides]
    if mode == Mode.START:
        shutil.rmtree(tmp_path / "run" / {"generator": "dit"}.get(name, name), ignore_errors=True)
    before = snapshot(tmp_path)
    experiment = load_experiment(toy_copy, overrides)
    with pytest.raises(UserError, match=sentence):
        run_stage(STAGES[name], Workspace(experiment, launch()), mode)
    assert snapshot(tmp_path) == before
    assert not writes


def test_an_encoder_that_cannot_be_trained_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.encoders.moco_v3.MoCoV3.trainable", False)
    with pytest.raises(UserError, match=r"cannot be pre-trained here: set encoder\.name=moco_v3"):
        train("encoder", write(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["encoder", "rdm", "generator"])
def test_a_folder_with_a_training_is_not_started_again(toy_copy, tmp_path, writes, name):
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="go on with --resume, or start again with --overwrite"):
        train(name, toy_copy)
    assert snapshot(tmp_path) == before
    assert not writes


def test_a_generator_of_another_autoencoder_is_not_resumed(toy_copy, tmp_path, writes):
    path = write(tmp_path, generator__autoencoder=KL, generator__patch=2)
    train("autoencoder", path)
    train("generator", path, mode=Mode.OVERWRITE)
    autoencoder = RunFolder(tmp_path / "run").autoencoder.checkpoint
    part = checkpoint.load(autoencoder)
    part.tensors["encoder.conv_in.weight"] += 1
    checkpoint.save(autoencoder, part)
    writes.clear()
    before = snapshot(tmp_path / "run" / "dit")
    with pytest.raises(UserError, match=r"trained with other neighbors \(it generates latents of kl:\w+ .*, not kl:"):
        train("generator", path, mode=Mode.RESUME)
    assert snapshot(tmp_path / "run" / "dit") == before
    assert not writes


def test_weights_in_the_folder_that_is_overwritten_are_not_where_training_starts(toy_copy, tmp_path, writes):
    path = write(tmp_path, generator__autoencoder=KL)
    stage = train("autoencoder", path)
    writes.clear()
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="copy the file to another place first"):
        train("autoencoder", path, f"generator.autoencoder.train.init_from={stage.checkpoint}", mode=Mode.OVERWRITE)
    assert snapshot(tmp_path) == before
    assert not writes


def test_stages_are_in_the_order_of_training():
    assert list(STAGES) == ["encoder", "autoencoder", "rdm", "generator"]


def test_a_stage_ignores_the_sections_that_do_not_concern_it(toy_copy):
    for name, change in {
        "encoder": "rdm.depth=7",
        "rdm": "generator.depth=7",
        "generator": "rdm.depth=7",
        "autoencoder": "generator.depth=7",
    }.items():
        kl = f"generator.autoencoder={KL}"
        same = [STAGES[name].identity(load_experiment(toy_copy, changes)) for changes in ([kl], [kl, change])]
        assert same[0] == same[1], name
    seeds = [STAGES["rdm"].identity(load_experiment(toy_copy, [f"seed={seed}"])) for seed in (0, 1)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("mode", [Mode.START, Mode.OVERWRITE, Mode.RESUME])
@pytest.mark.parametrize("name", STAGES)
def test_a_dry_run_prints_the_configuration_and_writes_nothing(toy_copy, tmp_path, name, mode, capsys):
    path = write(tmp_path, generator__autoencoder=AUTOENCODER) if name == "autoencoder" else toy_copy
    folder = STAGES[name].folder(load_experiment(path)).path
    if mode == Mode.START:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(tmp_path / "run" / "cache")  # nor does it encode
    before = snapshot(tmp_path)
    run_stage(STAGES[name], Workspace(load_experiment(path), launch()), mode, dry_run=True)
    assert snapshot(tmp_path) == before
    printed = capsys.readouterr().out
    assert f"{name}: 180 images of 10 classes, 20 more for validation" in printed
    assert "arch: resnet18" in printed
    assert f"nothing was trained or written: {folder}" in printed


@pytest.mark.parametrize("mode", [Mode.START, Mode.OVERWRITE])
@pytest.mark.parametrize("case", REFUSALS)
def test_a_dry_run_refuses_what_a_training_does(toy_copy, tmp_path, case, mode):
    name, overrides, sentence = REFUSALS[case]
    if "FOLDER" in str(overrides) or "ROOT" in str(overrides):
        pytest.skip("files of the other test")
    if mode == Mode.START:
        shutil.rmtree(tmp_path / "run" / {"generator": "dit"}.get(name, name), ignore_errors=True)
    with pytest.raises(UserError, match=sentence):
        run_stage(STAGES[name], Workspace(load_experiment(toy_copy, overrides), launch()), mode, dry_run=True)


@pytest.mark.parametrize("name", ["encoder", "rdm", "generator"])
def test_a_start_is_recorded_beside_the_part_and_in_its_header(toy_run, name):
    stage = STAGES[name].folder(load_experiment(toy_run / "toy.yaml"))
    recorded = json.loads(stage.record.read_text())
    (start,) = recorded["starts"]
    assert start["images"], start["validation"] == (180, 20)
    assert start["classes"] == 10
    assert start["precision"] == "float32"
    assert start["steps"] == stage.part().facts.steps
    assert start["parameters"][name] > 100
    program = stage.part().facts.program
    assert program == {key: start[key] for key in program}
    assert program["rcg"] == rcg.__version__
    assert program["torch"] == str(torch.__version__)
    assert "pytest" in program["command"]
    assert recorded["facts"]["fingerprint"] == stage.part().facts.fingerprint


def test_every_start_is_recorded(toy_copy, tmp_path):
    train("rdm", toy_copy, "rdm.train.steps=22", mode=Mode.RESUME)
    starts = json.loads((tmp_path / "run" / "rdm" / "training.json").read_text())["starts"]
    assert [start["steps"] for start in starts] == [20, 22]


@pytest.mark.parametrize("name", STAGES)
def test_every_task_has_a_score_that_patience_can_wait_for(toy_copy, tmp_path, name):
    path = write(tmp_path, generator__autoencoder=AUTOENCODER) if name == "autoencoder" else toy_copy
    task = STAGES[name].task(Workspace(load_experiment(path), launch()))
    with torch.no_grad():
        report = task.evaluate({key: module.eval() for key, module in task.modules.items()}, 0)
    assert math.isfinite(report.score)


def test_an_encoder_without_labels_has_a_score_too(tmp_path):
    work = Workspace(load_experiment(write(tmp_path)), launch())
    for images in work.images:
        images.source.labels = None
    task = STAGES["encoder"].task(work)
    with torch.no_grad():
        report = task.evaluate({"encoder": task.modules["encoder"].eval()}, 0)
    assert report.score == report.metrics["alignment"] + report.metrics["uniformity"]


def test_steps_follow_from_epochs(toy_copy, tmp_path):
    path = tmp_path / "epochs.yaml"
    values = yaml.safe_load(toy_copy.read_text())
    values["rdm"]["train"] = {"epochs": 2.5, "batch_size": 32, "precision": "no", "tracker": "none"}
    path.write_text(yaml.safe_dump(values))
    stage = train("rdm", path, mode=Mode.OVERWRITE)
    assert stage.part().facts.steps == stage.part().facts.step == 14  # 2.5 x 180 / 32
    saved = yaml.safe_load(stage.config.read_text())["rdm"]["train"]
    assert saved["epochs"] == 2.5
    assert "steps" not in saved
    longer = train("rdm", stage.config, "rdm.train.epochs=3", mode=Mode.RESUME)
    assert longer.part().facts.step == 17
    assert load_experiment(stage.config, ["rdm.train.steps=9"]).rdm.train.epochs is None
    assert load_experiment(toy_copy, ["rdm.train.epochs=9"]).rdm.train.epochs == 9
    values["rdm"]["train"]["steps"] = 4
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="steps and epochs both say how long to train"):
        load_experiment(path)


def test_a_cosine_that_is_stretched_is_said_to_jump(toy_copy, capsys):
    train("rdm", toy_copy, "rdm.train.schedule=cosine", mode=Mode.OVERWRITE)
    capsys.readouterr()
    train("rdm", toy_copy, "rdm.train.schedule=cosine", "rdm.train.steps=40", mode=Mode.RESUME)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "the learning rate jumps from 3.2e-06 to 0.00026 at step 20" in warning
    train("rdm", toy_copy, "rdm.train.schedule=cosine", "rdm.train.steps=40", mode=Mode.RESUME)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("encoder.train.batch_size=1", "choose a batch_size of at least 2"),
        ("encoder.train.grad_accum_steps=16", "choose a batch_size of at least 32"),
        ("rdm={self_condition: true, train: {batch_size: 1}}", "self_condition shows every second sample an estimate"),
        ("encoder.train.patience=2", "set evaluate_every"),
        ("data.image_size=1", "data.image_size: .*greater than or equal to 4"),
        ("generator.guidance.interval=[0.9, 0.1]", "interval must rise"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(toy_copy, override, sentence):
    with pytest.raises(UserError, match=sentence):
        load_experiment(toy_copy, [override])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"condition_dropout": 0}, 1), ({"condition_dropout": 0.1}, 0), ({"condition": "none"}, 0)],
)
def test_guidance_from_a_condition_that_is_never_trained_is_warned_of(toy_copy, settings, expected):
    changes = ["generator.guidance.scale=2", *(f"generator.{key}={value}" for key, value in settings.items())]
    warnings = list(load_experiment(toy_copy, changes).warnings())
    assert len([text for text in warnings if "is never trained" in text]) == expected


@pytest.mark.parametrize(
    ("config", "epochs", "published"),
    [
        ("adm", 400, 2_001_600),
        ("dit", 400, 250_000),
        ("ldm", 40, 200_160),
        ("mage", 800, 249_600),
        ("rdm", 200, 500_400),
    ],
)
def test_the_papers_configurations_train_for_its_epochs(config, epochs, published):
    path = ROOT / "configs" / f"imagenet256_{config}.yaml"
    experiment = resolve_epochs(load_experiment(path), 1_281_167)
    train_config = STAGES["rdm" if config == "rdm" else "generator"].train_config(experiment)
    assert train_config.epochs == epochs
    # Theirs drop the rest of every epoch.
    assert train_config.steps == pytest.approx(published, rel=3e-3)
    assert experiment.data.validation is None  # the official split
