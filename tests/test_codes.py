"""Codes: an image as what it means and what its meaning leaves open."""

import pytest
import torch

from rcg.core.errors import UserError
from rcg.core.registry import SAMPLERS
from rcg.core.rng import SampleNoise
from rcg.diffusion.inversion import invert
from rcg.pipeline import Code, Pipeline

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
    with pytest.raises(UserError, match="a representation is not finite"):
        pipeline.decode(Code(z * torch.nan), steps=3)
