"""A diffusion generator completes images, as tools/inpaint.py and in Python."""

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.diffusion.inpainting import box
from rcg.diffusion.repaint import Resampling
from rcg.pipeline import Pipeline, SamplingOptions
from tests.toy import tool

BOX = (0.25, 0.25, 0.75, 0.75)


@pytest.fixture(scope="module")
def pipeline(toy_run):
    return Pipeline.from_pretrained(toy_run / "run")


@pytest.fixture
def picture(tmp_path):
    values = np.random.RandomState(0).randint(0, 256, (20, 26, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def shown(toy_run, picture, name, *arguments):
    """Return the panel that the tool draws."""
    out = picture.parent / f"{name}.png"
    done = tool("inpaint", toy_run / "run", "--image", picture, "--num", 2, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("representation", ["visible", "generated", "original"])
def test_the_panel_depends_on_the_representation_and_on_resampling(toy_run, picture, representation):
    arguments = ["--box", *BOX, "--representation", representation]
    panels = [shown(toy_run, picture, str(times), *arguments, "--resamplings", times) for times in (1, 5)]
    assert not np.array_equal(*panels)
    assert np.array_equal(panels[1], shown(toy_run, picture, "default", *arguments))


def test_known_pixels_come_back_and_images_depend_on_their_seeds_alone(pipeline):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hole, options = box(16, *BOX).expand(2, -1, -1), SamplingOptions(seed=3)
    z = pipeline.represent(image)
    both = pipeline.inpaint(image, hole, options, z=z, resampling=Resampling(2)).images
    assert torch.equal(both[:, :, ~hole[0]], image[:, :, ~hole[0]])
    assert not torch.equal(both[0], both[1])
    alone = pipeline.inpaint(image[:1], hole[:1], options, z=z[:1], resampling=Resampling(2)).images
    torch.testing.assert_close(alone, both[:1])


def test_a_full_hole_is_generation(pipeline):
    image = torch.rand(2, 3, 16, 16)
    filled = pipeline.inpaint(image, torch.ones(2, 16, 16, dtype=torch.bool), SamplingOptions(seed=3))
    assert torch.equal(filled.images, pipeline.generate([0, 1], SamplingOptions(seed=3)).images)
