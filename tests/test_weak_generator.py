"""Guidance by a worse self: a snapshot that training keeps, or another run, for every way of sampling."""

from dataclasses import replace

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.encoding.run_folder import Mode, RunFolder, StageFolder
from rcg.evaluation.samples import SamplingPlan, open_samples
from rcg.pipeline import Pipeline, SamplingOptions
from tests.line import DeathError, Line, config_for, die, run
from tests.small import make_run
from tests.toy import complaint, tool, train

OPTIONS = SamplingOptions(seed=3, steps=2, guidance=2.0)
SNAPSHOT = config_for(steps=40, save_every=8, ema_decay=0.9, snapshot=0.25)


@pytest.mark.parametrize("killed", [None, 9, 12])
def test_the_snapshot_is_the_averaged_model_of_its_step(tmp_path, killed):
    run(Line(), SNAPSHOT.model_copy(update={"steps": 10, "snapshot": None}), tmp_path / "short")
    if killed is not None:
        with pytest.raises(DeathError):
            run(Line({killed: die}), SNAPSHOT, tmp_path / "long")
    run(Line(), SNAPSHOT, tmp_path / "long")
    short, long = StageFolder(tmp_path / "short"), StageFolder(tmp_path / "long")
    kept = checkpoint.load(long.snapshot)
    assert (kept.facts.step, kept.facts.steps, long.part().facts.step) == (10, 40, 40)
    assert all(torch.equal(value, kept.tensors[name]) for name, value in short.part().tensors.items())
    assert not short.snapshot.exists()


def weaken(part, seed=1):
    """Return a part of other weights."""
    torch.manual_seed(seed)
    tensors = {name: x + 0.1 * torch.randn_like(x) if x.is_floating_point() else x for name, x in part.tensors.items()}
    return replace(part, tensors=tensors)


@pytest.fixture(scope="module", params=["representation", "none"])
def guided(request, tmp_path_factory):
    """A run whose generator has a snapshot."""
    run = make_run(tmp_path_factory.mktemp("weak"), condition=request.param)
    stage = run.choose_generator(None)
    checkpoint.save(stage.snapshot, weaken(stage.part()))
    return run


def test_samples_lean_away_from_the_snapshot(guided):
    pipeline = Pipeline.from_pretrained(guided.path, weak="snapshot")
    images = pipeline.generate([0, 1], OPTIONS).images
    plain = Pipeline.from_pretrained(guided.path)
    worse = Pipeline(pipeline.parts["weak"]).generator
    z = plain.generate_z([0, 1], OPTIONS) if plain.config.condition == "representation" else None
    noise = SampleNoise(3, [0, 1], "generator")
    guidance = plain.config.guidance.with_scale(2.0)
    sampler = plain.config.sampler.with_steps(2)
    with torch.no_grad():
        expected = plain.generator.sample(z, noise, guidance=guidance, sampler=sampler, weak=worse)
    torch.testing.assert_close(images, plain.autoencoder.decode(expected))
    unguided = pipeline.generate([0, 1], replace(OPTIONS, guidance=1.0)).images
    configured = replace(OPTIONS, guidance=None)  # no guidance
    assert torch.equal(unguided, plain.generate([0, 1], configured).images)
    assert not torch.equal(unguided, images)


def test_a_run_a_file_and_a_saved_pipeline_give_the_same_guide(guided, tmp_path):
    expected = Pipeline.from_pretrained(guided.path, weak="snapshot")
    images = expected.generate([0], OPTIONS).images
    stage = guided.choose_generator(None)
    other = RunFolder(tmp_path / "other").stage_folder(stage.name)
    checkpoint.save(other.checkpoint, checkpoint.load(stage.snapshot))
    saved = expected.save_pretrained(tmp_path / "saved")
    for weak in (stage.snapshot, other.checkpoint, other.path, tmp_path / "other"):
        pipeline = Pipeline.from_pretrained(guided.path, weak=weak)
        assert torch.equal(pipeline.generate([0], OPTIONS).images, images), weak
    assert torch.equal(Pipeline.from_pretrained(saved).generate([0], OPTIONS).images, images)


def test_the_guide_is_among_the_facts_where_it_is_used(guided):
    def facts(weak, **options):
        plan = SamplingPlan(2, replace(OPTIONS, **options), weak=weak)
        return open_samples(guided, None, plan, None, torch.device("cpu")).facts

    named = facts("snapshot")
    assert named["guidance"]["scale"] == 2
    assert "weak" in named["weights"]
    with pytest.raises(UserError, match="--weak was given, but a guidance of 1 does not use it"):
        facts("snapshot", guidance=1.0)


def test_guides_that_do_not_fit_are_refused_by_name(guided, tmp_path):
    stage = guided.choose_generator(None)
    condition = "none" if stage.name == "dit" else "representation"
    make_run(tmp_path, condition=condition)
    with pytest.raises(UserError, match="needs a condition of"):
        Pipeline.from_pretrained(guided.path, weak=tmp_path / "run")
    with pytest.raises(UserError, match=r"--weak is snapshot, but .* holds none: train with train.snapshot=0.1"):
        Pipeline.from_pretrained(tmp_path / "run", weak="snapshot")
    with pytest.raises(UserError, match=r"--weak is nowhere, which is not there"):
        Pipeline.from_pretrained(guided.path, weak="nowhere")
    with pytest.raises(UserError, match="holds another part than expected: kind is 'rdm'"):
        Pipeline.from_pretrained(guided.path, weak=guided.rdm.checkpoint)


def test_tools_train_with_a_snapshot_and_guide_away_from_it(toy_copy, tmp_path):
    changes = ("generator.train.snapshot=0.5", "generator.train.steps=4", "generator.train.optimizer=muon")
    stage = train("generator", toy_copy, *changes, mode=Mode.OVERWRITE)
    assert checkpoint.load(stage.snapshot).facts.step == 2
    arguments = [tmp_path / "run", "--num", 2, "--weak", "snapshot", "--guidance", 2]
    done = tool("sample", *arguments, "--out", tmp_path / "gallery")
    assert done.returncode == 0, done.stderr
    quick = ["--inception", "none", "--resamples", 0, "--no-memorization", "--out", tmp_path / "report"]
    done = tool("evaluate", *arguments, 1, *quick)
    assert done.returncode == 0, done.stderr
    sentence = complaint(tool("sample", tmp_path / "run", "--num", 2, "--weak", "snapshot", "--guidance", 1))
    assert "--weak was given, but a guidance of 1 does not use it" in sentence


def test_an_rdm_has_a_snapshot_too(toy_copy, tmp_path):
    train("rdm", toy_copy, "rdm.train.snapshot=0.5", "rdm.train.steps=4", mode=Mode.OVERWRITE)
    done = tool("sample_rdm", toy_copy, "--num", 4, "--weak", "snapshot", "--guidance", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
