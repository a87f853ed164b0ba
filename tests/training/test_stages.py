"""Every refusal of a training comes before the first write into the folder of its stage."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from rcg.encoding.workspace import Workspace
from rcg.training.stages import STAGES, run_stage
from tests.toy import TOKENIZER, snapshot, train, write

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
