"""An encoder that is trained together with the generator: the order of stages follows, and all else works as ever."""

import shutil

import pytest
import torch

from rcg.core.checkpoint import load_tensors
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.diffusion.model import restore
from rcg.encoding.encoder import load_encoder
from rcg.encoding.representation import standardizes
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.pipeline import Pipeline
from tests.small import GENERATOR
from tests.toy import TOKENIZER, snapshot, train, write

QUIET = {"precision": "no", "tracker": "none"}
SEMANTIC = {"name": "semantic", "width": 16, "multipliers": [1, 2], "blocks": 1, "dim": 8, "train": QUIET}
ADM = {
    **GENERATOR["adm"],
    "name": "adm",
    "sampler": {"name": "ddim", "steps": 2},
    "train": {"steps": 2, "batch_size": 8, **QUIET},
}


def configure(folder, **changes):
    """Write the experiment with a semantic encoder, in DiffAE's normalization."""
    return write(folder, **{"encoder": SEMANTIC, "normalize": "per_dataset", **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with all stages, which nobody may change."""
    folder = tmp_path_factory.mktemp("joint")
    path = configure(folder)
    train("generator", path)
    train("rdm", path)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The configuration of a copy of that run, which a test may change."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return configure(tmp_path)


def averages(run, steps=20):
    """Return the averaged weights of the generator and the encoder in the state of a joint training."""
    tensors, _ = load_tensors(run.stage_folder("dit").state_file(steps))
    prefix = "average/generator/"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def test_the_encoder_that_is_kept_is_the_averaged_one(trained):
    run = RunFolder(trained / "run")
    saved, average = run.encoder.part(), averages(run)
    assert saved.tensors.keys() == {key.removeprefix("encoder.") for key in average if key.startswith("encoder.")}
    assert all(torch.equal(value, average[f"encoder.{key}"]) for key, value in saved.tensors.items())
    tensors, _ = load_tensors(run.stage_folder("dit").state_file(20))
    assert not torch.equal(tensors["module/generator/encoder.output.weight"], saved.tensors["output.weight"])


def test_every_weight_of_the_encoder_learns(trained, tmp_path):
    run = RunFolder(trained / "run")
    untrained = train("generator", configure(tmp_path, generator__train__steps=0))
    before, after = RunFolder(untrained.path.parent).encoder.part().tensors, run.encoder.part().tensors
    assert [key for key in after if torch.equal(before[key], after[key])] == []


def test_the_generator_of_z_denoises_as_that_of_representations_did(trained):
    run = RunFolder(trained / "run")
    pipeline, raw = Pipeline.from_pretrained(run.path), restore(run.stage_folder("dit").part(), GENERATORS)
    assert standardizes(pipeline.generator.cond, raw.cond)
    assert pipeline.generator.cond == pipeline.rdm.data
    image = torch.rand(3, 3, 16, 16)
    z, rep = pipeline.represent(image), load_encoder(run.encoder.checkpoint)(image)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 400, 900])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.generator.network(x, t, z), raw.network(x, t, rep))
        nulls = pipeline.generator.null_like(z), raw.null_like(rep)
        torch.testing.assert_close(pipeline.generator.network(x, t, nulls[0]), raw.network(x, t, nulls[1]))


def test_z_of_the_training_images_is_standardized_over_the_data_set(trained):
    from accelerate import Accelerator

    from rcg.config import load_experiment
    from rcg.encoding.workspace import Workspace, first_views

    work = Workspace(load_experiment(trained / "toy.yaml"), Accelerator(mixed_precision="no"))
    z = first_views(work.z("train"))
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(8), atol=1e-4, rtol=0)


def test_images_are_encoded_decoded_and_generated(trained, tmp_path):
    pipeline = Pipeline.from_pretrained(trained / "run")
    code = pipeline.encode(torch.rand(2, 3, 16, 16), steps=4)
    assert code.z.shape == (2, 8)
    assert pipeline.decode(code, steps=4).shape == (2, 3, 16, 16)
    generated = pipeline.sample(3, output="tensor")
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    assert torch.equal(again.sample(3, output="tensor"), generated)
    assert torch.equal(again.represent(generated), pipeline.represent(generated))


def test_a_saved_pipeline_without_its_transform_is_refused(trained, tmp_path):
    folder = Pipeline.from_pretrained(trained / "run").save_pretrained(tmp_path / "saved")
    (folder / "transform.safetensors").unlink()
    with pytest.raises(UserError, match="the transform that leads from one to the other is missing"):
        Pipeline.from_pretrained(folder)


def test_without_an_rdm_z_is_the_representation(trained, copied, tmp_path):
    shutil.rmtree(tmp_path / "run" / "rdm")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    image = torch.rand(2, 3, 16, 16)
    encoder = load_encoder(pipeline.run.encoder.checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(pipeline.represent(image), encoder(image))
    assert pipeline.decode(pipeline.encode(image, steps=4), steps=4).shape == image.shape


@pytest.mark.parametrize("normalize", ["per_dataset", "per_sample"])
def test_a_resumed_training_ends_with_the_same_weights(normalize, tmp_path):
    changes = {"normalize": normalize, "generator__condition_dropout": 0.3, "generator__train__batch_size": 8}
    if normalize == "per_sample":
        changes["generator__condition_noise"] = 0.5
    (tmp_path / "whole").mkdir(), (tmp_path / "halves").mkdir()
    whole = train("generator", configure(tmp_path / "whole", **changes), "generator.train.steps=8")
    path = configure(tmp_path / "halves", **changes)
    train("generator", path, "generator.train.steps=3")
    resumed = train("generator", path, "generator.train.steps=8", mode=Mode.RESUME)
    for one, other in ((whole, resumed), (RunFolder(f.path.parent).encoder for f in (whole, resumed))):
        assert one.part().facts.cond == other.part().facts.cond
        assert one.part().facts.step == other.part().facts.step == 8
        assert all(torch.equal(other.part().tensors[key], value) for key, value in one.part().tensors.items())


def test_the_generator_may_work_in_latents(tmp_path):
    latents = TOKENIZER | {"name": "kl", "train": TOKENIZER["train"] | {"perceptual": "none", "steps": 1}}
    del latents["quantizer"]
    path = configure(tmp_path, generator__autoencoder=latents, generator__patch=2, generator__train__steps=1)
    train("autoencoder", path)
    train("generator", path)
    assert Pipeline.from_pretrained(tmp_path / "run").represent(torch.rand(2, 3, 16, 16)).shape == (2, 8)


def test_both_start_where_another_run_ended(trained, tmp_path):
    folder = train(
        "generator", configure(tmp_path, generator__train__init_from=str(trained / "run")), "generator.train.steps=0"
    )
    one, other = RunFolder(trained / "run"), RunFolder(folder.path.parent)
    for stage in ("encoder", "dit"):
        before, after = (run.stage_folder(stage).part().tensors for run in (one, other))
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_second_generator_learns_on_the_encoder_as_it_is(copied, tmp_path):
    before = snapshot(tmp_path / "run" / "encoder")
    folder = train("generator", configure(tmp_path, generator=ADM))
    assert snapshot(tmp_path / "run" / "encoder") == before
    assert folder.part().facts.cond == RunFolder(tmp_path / "run").rdm.part().facts.data
    assert Pipeline.from_pretrained(tmp_path / "run", "adm").sample(1)


def test_each_stage_says_what_comes_first(tmp_path):
    path = configure(tmp_path)
    with pytest.raises(UserError, match=r"trained together with the generator: go on with tools/train_pixel\.py"):
        train("encoder", path)
    with pytest.raises(UserError, match=r"holds no trained encoder.* run tools/train_pixel\.py"):
        train("rdm", path)
    with pytest.raises(UserError, match=r"holds no trained encoder.* run tools/train_pixel\.py"):
        train("generator", path, "generator.condition=cluster")
    assert not (tmp_path / "run" / "encoder").exists()


def test_a_generator_of_labels_leaves_the_encoder_alone(tmp_path):
    train("generator", configure(tmp_path), "generator.condition=class", "generator.train.steps=1")
    assert not (tmp_path / "run" / "encoder").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"projection": {"width": 4}}, "projection needs an encoder that is there"),
        ({"generator__align": {"depth": 1}}, "generator.align needs a frozen encoder"),
        ({"generator__perceptual": {}}, "generator.perceptual needs a frozen encoder, and semantic is trained"),
        ({"generator__condition_noise": 0.5}, "set it to 0, or normalize to per_sample"),
    ],
)
def test_what_an_encoder_in_training_cannot_have_is_refused(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train("generator", configure(tmp_path, **changes))
    assert not (tmp_path / "run" / "dit").exists()


def test_a_trained_encoder_is_not_replaced_without_a_word(copied, tmp_path, capsys):
    before = snapshot(tmp_path / "run" / "encoder")
    with pytest.raises(UserError, match="already holds"):
        train("generator", copied)
    shutil.rmtree(tmp_path / "run" / "dit")
    for mode, sentence in ((Mode.START, "already holds this experiment"), (Mode.RESUME, "no state to go on from")):
        with pytest.raises(UserError, match=sentence):
            train("generator", copied, mode=mode)
    assert snapshot(tmp_path / "run" / "encoder") == before
    train("generator", copied, "generator.train.steps=1", mode=Mode.OVERWRITE)
    assert "train it again (tools/train_rdm.py --overwrite)" in capsys.readouterr().err
    with pytest.raises(UserError, match="is conditioned on representations of"):
        Pipeline.from_pretrained(tmp_path / "run")


def test_an_encoder_of_another_kind_is_not_replaced(toy_copy, tmp_path):
    before = snapshot(tmp_path / "run" / "encoder")
    for mode in (Mode.START, Mode.OVERWRITE):
        with pytest.raises(UserError):
            train("generator", configure(tmp_path), mode=mode)
    assert snapshot(tmp_path / "run" / "encoder") == before
