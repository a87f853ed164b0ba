"""Arms compared through the tool: trained networks are used, missing ones trained, interrupted trainings go on."""

import json
import shutil
from dataclasses import replace

import pytest

from rcg import cli
from rcg.comparison.arms import ARMS
from rcg.core import checkpoint
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.evaluation.samples import GeneratedImages
from tests.toy import MAGE, tool, train, write

QUICK = ("--inception", "none", "--num", 24, "--resamples", 2, "--batch-size", 8)
STEPS = 4
"""Evaluations of one pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder, an RDM and a generator conditioned on representations; the comparison has to train the others."""
    folder = tmp_path_factory.mktemp("compared")
    path = write(folder, generator__guidance={"scale": 1.5})
    for stage in ("encoder", "rdm", "generator"):
        train(stage, path)
    return folder


@pytest.fixture(scope="module")
def trainings(folder):
    """Compare, interrupted in the second training; compare again; return what was trained in each."""
    trained, train_stage = [], cli.train_stage

    def dying(stage, experiment, mode):
        assert (stage.name, mode) == ("generator", Mode.RESUME)
        trained.append(experiment.generator.folder_name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        train_stage(stage, experiment, mode)

    shutil.copy(RunFolder(folder / "run").stage_folder("dit").checkpoint, folder / "before.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train_stage", dying)
        assert tool("compare", folder / "toy.yaml", *QUICK).returncode == 130
        first = list(trained)
        done = tool("compare", folder / "toy.yaml", *QUICK)
        assert done.returncode == 0, done.stderr
    return first, trained[len(first) :]


@pytest.fixture(scope="module")
def found(folder, trainings):
    return json.loads((folder / "run" / "comparison-dit" / "compare.json").read_text())


def test_only_what_is_missing_is_trained(folder, trainings):
    assert trainings == (["dit-none", "dit-none-self"], ["dit-none-self", "dit-cluster", "dit-class", "dit-joint"])
    after = RunFolder(folder / "run").stage_folder("dit").checkpoint
    assert (folder / "before.safetensors").read_bytes() == after.read_bytes()


def test_every_arm_costs_the_evaluations_of_its_networks(found):
    asked = {key: (arm["cost"]["generator"], arm["cost"]["rdm"]) for key, arm in found["arms"].items()}
    assert asked == {
        "none": (STEPS, 0),
        "twice": (1.5 * STEPS, 0),
        "self": (STEPS, 0),
        "encoded": (STEPS + 2 * STEPS, 0),
        "cluster": (2 * STEPS, 0),
        "class": (2 * STEPS, 0),
        "joint": (STEPS, 0),
        "generated": (2 * STEPS, 4),
        "oracle": (2 * STEPS, 0),
    }
    assert {arm["training"]["steps"] for arm in found["arms"].values()} == {20}
    assert all(arm["cost"]["seconds"] > 0 for arm in found["arms"].values())


def test_arms_have_the_conditions_of_their_names(found):
    sources = {key: arm["training"]["representations"] for key, arm in found["arms"].items()}
    assert {key: facts["of"] for key, facts in sources.items() if facts} == {
        "encoded": "samples",
        "oracle": "training images",
    }
    assert found["arms"]["cluster"]["training"]["clusters"] == 3
    values = [arm["scores"][0]["value"] for arm in found["arms"].values()]
    assert len(set(values)) == len(ARMS)


def test_the_share_of_the_gap_is_that_of_the_scores(found):
    fd = {key: next(f["value"] for f in arm["scores"] if f["name"] == "FD") for key, arm in found["arms"].items()}
    for key, arm in found["arms"].items():
        share = arm["gap_closed"].get("own-moco_v3")
        if fd["none"] > fd["oracle"]:
            assert share["mean"] == pytest.approx((fd["none"] - fd[key]) / (fd["none"] - fd["oracle"]))
        else:
            assert share is None
    assert not found["real"], "20 validation images are fewer than 24 samples"
    said = " ".join(found["warnings"])
    assert "there is no reference distance: it would need 24 validation images" in said
    assert "the oracle's representations are of training images, on which its network was trained" in said
    assert "oracle (training images)" in found["report"]["lines"][0]


def test_the_page_needs_no_other_file_and_the_table_has_every_arm(folder, found):
    out = folder / "run" / "comparison-dit"
    page, text = (out / "compare.html").read_text(), (out / "compare.md").read_text()
    assert page.count("data:image/png;base64,") == 1, "the logs are too short for curves"
    assert "src=" not in page.replace('src="data:image/png;base64,', "")
    for arm in found["arms"].values():
        assert f"<td>{arm['name']}</td>" in page
        assert f"| {arm['name']} |" in text
    assert "| 8 + 4 of the RDM |" in text
    assert (out / "compare.png").is_file()


def test_as_many_validation_images_as_samples_are_a_reference_and_an_oracle(folder, trainings, tmp_path):
    done = tool(
        "compare", folder / "toy.yaml", *QUICK, "--num", 20, "--no-train", "--arms", "oracle", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["real"][0]["name"] == "FD of 20 validation images"
    assert found["arms"]["oracle"]["training"]["representations"]["of"] == "validation images"
    assert not any("oracle" in warning or "reference distance" in warning for warning in found["warnings"])
    assert "| real images | as many validation images |" in (tmp_path / "compare.md").read_text()


def test_the_same_command_again_generates_and_trains_nothing(folder, found, monkeypatch):
    monkeypatch.setattr(GeneratedImages, "batches", lambda *_: pytest.fail("generated again"))
    monkeypatch.setattr(cli, "train_stage", lambda *_: pytest.fail("trained again"))
    assert tool("compare", folder / "toy.yaml", *QUICK).returncode == 0
    assert json.loads((folder / "run" / "comparison-dit" / "compare.json").read_text()) == found


def test_arms_that_are_not_there_are_left_out_without_training(folder, trainings, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "dit-none")
    arguments = (folder / "toy.yaml", f"run={tmp_path / 'run'}", *QUICK, "--no-train")
    done = tool("compare", *arguments, "--arms", "class", "none", "encoded")
    assert done.returncode == 0, done.stderr
    assert "| one pass | not available: dit-none is at step 0 of 20: leave --no-train out to train it |" in done.stdout
    assert "| two passes, encoded | not available: dit-none is at step 0" in done.stdout
    assert "needs the arms none, generated and oracle" in done.stdout
    assert not (tmp_path / "run" / "dit-none").exists()
    none = tool("compare", *arguments, "--arms", "none")
    assert none.returncode == 2
    assert "none of the arms can be evaluated: dit-none is at step 0 of 20" in none.stderr


def test_samples_are_generated_as_the_experiment_says_now(folder, trainings, tmp_path):
    changes = ("generator.sampler.steps=2", "generator.guidance.scale=1")
    options = (*QUICK, "--no-train", "--arms", "class", "--out", tmp_path)
    done = tool("compare", folder / "toy.yaml", *changes, *options)
    assert done.returncode == 0, done.stderr
    arm = json.loads((tmp_path / "compare.json").read_text())["arms"]["class"]
    assert arm["cost"]["generator"] == 2
    assert arm["training"]["guidance"]["scale"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generator.depth=3"], "dit-none holds another experiment (generator.depth: 2 -> 3)"),
        (["generator.train.steps=10"], "was trained for 20 steps, but generator.train.steps is 10"),
        (["--sdedit-strength", "0"], "expected a number from 0.001 to 1, got '0'"),
        (["--arms", "nothing"], "invalid choice: 'nothing'"),
        (["--out", "FILE"], "is a file, not a folder"),
        (["--inception", "nowhere.pth"], "nowhere.pth"),
        (["--reference", "nowhere.npz"], "there is no file nowhere.npz"),
    ],
)
def test_mistakes_give_one_sentence_before_anything_is_trained(folder, trainings, arguments, said, monkeypatch):
    monkeypatch.setattr(cli, "train_stage", lambda *_: pytest.fail("trained"))
    arguments = [str(folder / "toy.yaml") if text == "FILE" else text for text in arguments]
    done = tool("compare", folder / "toy.yaml", *QUICK, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_generator_of_tokens_is_compared_alike(tmp_path, toy_autoencoder):
    path = write(tmp_path, generator=MAGE, data__limit=80, encoder__weights="none", rdm__train__steps=2)
    train("rdm", path)
    done = tool("compare", path, "generator.train.tracker=tensorboard", *QUICK, "--sdedit-strength", 0.25)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "comparison-mage" / "compare.json").read_text())
    assert found["arms"]["joint"]["missing"] == "mage cannot generate a representation together with the image"
    asked = {key: arm["cost"]["generator"] for key, arm in found["arms"].items() if key != "joint"}
    assert asked == dict.fromkeys([key for key in ARMS if key != "joint"], STEPS) | {
        "twice": 1.25 * STEPS,
        "encoded": 2 * STEPS,
    }
    assert found["arms"]["self"]["network"] == "mage-none-self"


def test_networks_that_were_trained_on_other_images_are_not_compared(folder, trainings, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    path = RunFolder(tmp_path / "run").stage_folder("dit-none").checkpoint
    part = checkpoint.load(path)
    checkpoint.save(path, replace(part, facts=part.facts.model_copy(update={"fingerprint": "0" * 16})))
    done = tool("compare", folder / "toy.yaml", f"run={tmp_path / 'run'}", *QUICK, "--arms", "none", "--no-train")
    assert done.returncode == 2
    assert "dit-none was trained on other images than those that are now the training images of digits" in done.stderr
