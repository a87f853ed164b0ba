"""Codes: an image as what it means and what its meaning leaves open."""

import shutil
from dataclasses import replace

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.inversion import invert
from rcg.encoding.run_folder import RunFolder
from rcg.pipeline import Code, Pipeline, SamplingOptions
from tests.toy import train, write

SIZE = 16


@pytest.fixture
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture
def image():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_a_code_is_the_representation_and_the_noise(pipeline, image):
    code, model = pipeline.encode(image, steps=5), pipeline.generator
    assert torch.equal(code.z, pipeline.represent(image))
    levels = model.process.levels(5, "trailing")
    noise = invert(model.process, model.network, image * 2 - 1, code.z, levels)
    torch.testing.assert_close(code.noise, noise, rtol=1e-4, atol=1e-4)


def test_only_z_is_found_where_no_noise_is_asked_for(pipeline, image):
    code = pipeline.encode(image, steps=None)
    assert code.noise is None
    assert torch.equal(code.z, pipeline.represent(image))


def test_a_code_is_decoded_without_fresh_noise(pipeline, image):
    code = pipeline.encode(image, steps=5)
    decoded = pipeline.decode(code, steps=5, seed=1)
    assert torch.equal(decoded, pipeline.decode(code, steps=5, seed=2))
    model, sampler = pipeline.generator, SAMPLERS.get("ddim")(steps=5)

    class Given:
        def normal(self, shape):
            return code.noise

    x = sampler(model.process, model.network, model.data, code.z, Given())
    torch.testing.assert_close(decoded, (x.clamp(-1, 1) + 1) / 2)


def test_without_noise_a_sample_depends_on_the_seed_and_its_index_alone(pipeline, image):
    z = pipeline.represent(image)
    together = pipeline.decode(Code(z), steps=3, seed=7)
    alone = pipeline.decode(Code(z[1:2]), steps=3, seed=7, indices=[1])
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.equal(together, pipeline.decode(Code(z), steps=3, seed=8))
    noise = SampleNoise(7, [0, 1, 2], "generator").normal(pipeline.generator.data.shape)
    torch.testing.assert_close(together, pipeline.decode(Code(z, noise), steps=3))


def test_codes_that_are_not_finite_are_refused(pipeline, image):
    z = pipeline.represent(image)
    with pytest.raises(UserError, match="what was given as representation is not finite"):
        pipeline.decode(Code(z * torch.nan), steps=3)


def test_what_does_not_fit_is_refused(pipeline, image):
    z = pipeline.represent(image)
    with pytest.raises(UserError, match=r"images must be \(B, 3, 16, 16\)"):
        pipeline.encode(torch.rand(1, 3, 20, 20), steps=2)
    with pytest.raises(UserError, match="z must be"):
        pipeline.decode(Code(z[:, :-1]), steps=2)
    with pytest.raises(UserError, match="the noise of a code must be"):
        pipeline.decode(Code(z, torch.zeros(2, 3, SIZE, SIZE)), steps=2)


def test_guidance_from_a_null_condition_that_was_never_trained_is_refused(toy_run, tmp_path, image):
    shutil.copytree(toy_run / "run", tmp_path / "run")
    stage = RunFolder(tmp_path / "run").stage_folder("dit")
    part = stage.part()
    checkpoint.save(stage.checkpoint, replace(part, config=part.config | {"condition_dropout": 0.0}))
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    code = pipeline.encode(image, steps=None)
    assert pipeline.decode(code, steps=2).shape == image.shape
    with pytest.raises(UserError, match="which was never trained"):
        pipeline.decode(code, steps=2, guidance=2.0)


def test_guidance_is_warned_of_where_images_should_come_back(pipeline, image, capsys):
    code = pipeline.encode(image, steps=2)
    for made_of, warnings in ((Code(code.z), 0), (code, 1)):
        for _ in range(2):
            pipeline.decode(made_of, steps=2, guidance=2.0)
        assert capsys.readouterr().err.count("warning: guidance of 2 leads away from the images") == warnings
    pipeline.decode(code, steps=2)
    assert "guidance" not in capsys.readouterr().err


def test_images_are_redrawn_one_by_one(pipeline, image):
    z = pipeline.represent(image)
    together = pipeline.redraw(image, 0.5, SamplingOptions(seed=3), z=z).images
    alone = pipeline.redraw(image[1:2], 0.5, SamplingOptions(seed=3), z=z[1:2], indices=[1]).images
    torch.testing.assert_close(together[1:2], alone)
    torch.testing.assert_close(pipeline.redraw(image, 0, z=z).images, image)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="a strength of redrawing lies between 0 and 1"):
            pipeline.redraw(image, strength, z=z)


def test_a_generator_that_sees_its_last_estimate_has_codes_too(toy_run, tmp_path, image):
    for stage in ("encoder", "rdm"):
        shutil.copytree(toy_run / "run" / stage, tmp_path / "run" / stage)
    train("generator", write(tmp_path, generator__self_condition=True))
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    decoded = pipeline.decode(pipeline.encode(image, steps=4), steps=4)
    assert decoded.shape == image.shape
