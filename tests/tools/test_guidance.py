"""Guidance as tools take it: one way to override it, and refused where there is nothing to guide toward."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from rcg.comparison.study import check
from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.encoding.run_folder import RunFolder
from rcg.pipeline import Pipeline, SamplingOptions
from tests.toy import complaint, snapshot, tool, train, write

QUICK = {"sample": [], "evaluate": ["--inception", "none", "--resamples", 0, "--no-memorization"]}
UNTRAINED = "starts from the null condition of {}, which was never trained"


@pytest.fixture(scope="module")
def run(toy_run, tmp_path_factory):
    """The toy run with generators of every condition, of which `dit` never lost its condition in training."""
    folder = tmp_path_factory.mktemp("guidance")
    shutil.copytree(toy_run / "run", folder / "run")
    train("generator", write(folder, generator__train__steps=1), "generator.condition=none")
    set_config(RunFolder(folder / "run").stage_folder("dit"), condition_dropout=0.0)
    return folder / "run"


@pytest.fixture(scope="module")
def class_rdm(toy_run, tmp_path_factory):
    """The toy experiment with an RDM of classes."""
    folder = tmp_path_factory.mktemp("class-rdm")
    shutil.copytree(toy_run / "run", folder / "run")
    shutil.rmtree(folder / "run" / "rdm")
    path = write(folder, rdm__condition="class")
    train("rdm", path)
    return path


def set_config(stage, **values):
    """Change what a checkpoint says about itself."""
    part = stage.part()
    part.config.update(values)
    checkpoint.save(stage.checkpoint, part)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("scales", [[2], [1, 2]])
def test_a_null_that_was_never_trained_is_refused_and_needs_consent_by_name(run, tmp_path, name, scales):
    if name == "sample" and len(scales) > 1:
        pytest.skip("it takes one scale")
    arguments = [run, "--generator", "dit", "--num", 4, *QUICK[name], "--out", tmp_path / "out"]
    before = snapshot(run.parent)
    sentence = complaint(tool(name, *arguments, "--guidance", *scales))
    assert UNTRAINED.format("dit") in sentence
    assert "--allow-untrained-null" in sentence
    assert snapshot(run.parent) == before
    assert not (tmp_path / "out").exists()
    if name == "sample":
        done = tool(name, *arguments, "--guidance", *scales, "--allow-untrained-null")
        assert done.returncode == 0, done.stderr


def test_a_configured_guidance_from_an_untrained_null_is_refused_too(run):
    pipeline = Pipeline.from_pretrained(run, "dit")
    pipeline.generate([0])  # without guidance
    guided = pipeline.config.model_copy(update={"guidance": pipeline.config.guidance.with_scale(3.0)})
    pipeline.generator.config = guided
    with pytest.raises(UserError, match="which was never trained"):
        pipeline.generate([0])
    pipeline.generate([0], SamplingOptions(allow_untrained_null=True))
    pipeline.generate([0], SamplingOptions(guidance=1.0))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("scales", [[2], [1]])
def test_guidance_without_a_condition_is_refused(run, tmp_path, name, scales):
    arguments = [run, "--generator", "dit-none", "--num", 4, *QUICK[name], "--out", tmp_path / "out"]
    sentence = complaint(tool(name, *arguments, "--guidance", *scales))
    assert "dit-none has no condition to guide toward: leave --guidance out" in sentence
    assert not (tmp_path / "out").exists()


def test_steps_of_an_rdm_that_is_not_used_are_refused(run, tmp_path):
    arguments = [run, "--generator", "dit-none", "--rdm-steps", 2, "--out", tmp_path / "out"]
    assert "--rdm-steps was given, but no RDM generates representations here" in complaint(tool("sample", *arguments))


def generated(path, out, *arguments):
    done = tool("sample_rdm", path, "--num", 6, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    return checkpoint.load(out / "representations.safetensors").tensors["z"]


def test_a_scale_keeps_the_configured_interval_of_the_rdm(class_rdm, tmp_path):
    plain = generated(class_rdm, tmp_path / "plain", "--guidance", 1)
    guided = generated(class_rdm, tmp_path / "guided", "--guidance", 3)
    assert not torch.equal(plain, guided)
    never = generated(class_rdm, tmp_path / "never", "--guidance", 3, "rdm.guidance.interval=[1,1]")
    assert torch.equal(never, plain)


def test_sampler_and_guidance_are_those_of_the_experiment_now(class_rdm, tmp_path):
    guided = generated(class_rdm, tmp_path / "option", "--guidance", 3, "--rdm-steps", 2)
    again = generated(class_rdm, tmp_path / "keys", "rdm.guidance.scale=3", "rdm.sampler.steps=2")
    assert torch.equal(guided, again)
    assert "rdm.sampler.steps: 4 -> 2" in tool("sample_rdm", class_rdm, "rdm.sampler.steps=2", "--num", 1).stdout


@pytest.mark.parametrize("name", ["sample_rdm", "sweep_rdm"])
def test_an_override_that_the_trained_rdm_does_not_have_is_refused(class_rdm, tmp_path, name):
    sentence = complaint(tool(name, class_rdm, "rdm.width=24", "--num", 4))
    assert "holds another RDM (rdm.width: 16 -> 24): if it was trained with overrides, repeat them" in sentence


@pytest.mark.parametrize("name", ["sample_rdm", "sweep_rdm", "sample"])
def test_an_rdm_whose_null_was_never_trained_is_not_guided(class_rdm, tmp_path, name):
    shutil.copytree(class_rdm.parent, tmp_path / "copy")
    stage = RunFolder(tmp_path / "copy" / "run").rdm
    set_config(stage, guidance={"scale": 2.0}, condition_dropout=0.0)
    stage.config.unlink()  # as a converter leaves it
    path = write(tmp_path / "copy", rdm__condition="class", rdm__guidance={"scale": 2.0})
    arguments = [tmp_path / "copy" / "run"] if name == "sample" else [path]
    if name == "sweep_rdm":
        arguments += ["--steps", 1, "--samplers", "ddim"]
    assert UNTRAINED.format("rep_mlp") in complaint(tool(name, *arguments, "--num", 4))
    done = tool(name, *arguments, "--num", 4, "--allow-untrained-null")
    assert done.returncode == 0, done.stderr


def test_a_guide_of_another_kind_is_read_through_its_own_process(class_rdm, tmp_path):
    shutil.copytree(class_rdm.parent, tmp_path / "weak")
    path = write(tmp_path / "weak", rdm__condition="class", rdm__process={"name": "flow"}, rdm__self_condition=True)
    shutil.rmtree(tmp_path / "weak" / "run" / "rdm")
    train("rdm", path)
    z = generated(class_rdm, tmp_path / "guided", "--guidance", 2, "--weak", tmp_path / "weak" / "run")
    assert z.abs().max() < 20


def test_a_guide_of_another_condition_is_refused(class_rdm, toy_run, tmp_path):
    arguments = [class_rdm, "--guidance", 2, "--weak", toy_run / "run", "--out", tmp_path / "out"]
    sentence = complaint(tool("sample_rdm", *arguments))
    assert f"--weak {toy_run / 'run'}: a weaker model to guide away from needs a condition of labels ()" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "options", "sentence"),
    [
        (["none", "generated"], {"guidance": 2.0}, "which was never trained"),
        (["none", "class"], {"guidance": 2.0}, "which was never trained"),
        (["none", "twice"], {"guidance": 2.0}, "none of the arms has a condition to guide toward"),
        (["none", "generated"], {}, None),
        (["none", "generated"], {"guidance": 2.0, "allow_untrained_null": True}, None),
    ],
)
def test_a_comparison_is_refused_before_its_trainings(tmp_path, keys, options, sentence):
    experiment = load_experiment(write(tmp_path), ["generator.condition_dropout=0"])
    work = SimpleNamespace(experiment=experiment, run=SimpleNamespace(rdm=SimpleNamespace(is_trained=True)))
    if sentence is None:
        check(work, keys, SamplingOptions(**options))
    else:
        with pytest.raises(UserError, match=sentence):
            check(work, keys, SamplingOptions(**options))
