"""Paths of codes: their ends are the reconstructions, and normalized representations stay normalized."""

import pytest
import torch

from rcg.editing.interpolate import InterpolationOptions, decode_path
from rcg.pipeline import Code, Pipeline


@pytest.fixture(scope="module")
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture(scope="module")
def code(pipeline):
    return pipeline.encode(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), steps=3)


@pytest.mark.parametrize("curve", ["lerp", "slerp"])
def test_the_given_images_on_a_path_are_their_reconstructions(pipeline, code, curve):
    frames = decode_path(pipeline, code, InterpolationOptions(frames=2, curve=curve, steps=3))
    assert len(frames) == 5
    torch.testing.assert_close(frames[::2], pipeline.decode(code, steps=3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("curve", ["lerp", "slerp"])
@pytest.mark.parametrize("has_noise", [True, False])
def test_every_representation_on_a_path_is_normalized_as_those_of_images_are(
    pipeline, code, curve, has_noise, monkeypatch
):
    decoded = []

    def decode(part, *options, **others):
        decoded.append(part.z)
        return torch.zeros(len(part.z), 3, 16, 16)

    monkeypatch.setattr(pipeline, "decode", decode)
    path = code if has_noise else Code(code.z)
    decode_path(pipeline, path, InterpolationOptions(frames=4, curve=curve, steps=3))
    z = torch.cat(decoded)
    assert z.shape == (9, *code.z.shape[1:])
    torch.testing.assert_close(z.mean(1), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.norm(dim=1), code.z.norm(dim=1)[:1].expand(9))
