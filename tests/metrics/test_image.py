"""PSNR, SSIM and perceptual distances against closed forms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.models import vgg16

from rcg.core.errors import UserError
from rcg.metrics.image import psnr, ssim
from rcg.metrics.inception import Inception
from rcg.metrics.perceptual import EncoderDistance, VGGDistance, unit_distance


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_psnr_of_a_constant_offset_is_its_square_in_decibel():
    image = 0.5 * draw(2, 3, 8, 8)
    offsets = torch.tensor([0.1, 0.01])
    torch.testing.assert_close(psnr(image, image + offsets[:, None, None, None]), torch.tensor([20.0, 40.0]))


def test_the_similarity_of_an_image_with_itself_is_one():
    image = draw(2, 3, 20, 20)
    torch.testing.assert_close(ssim(image, image), torch.ones(2))
    assert ssim(image, 1 - image).max() < 0


def test_the_similarity_of_constant_images_has_its_closed_form():
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("side", [11, 24])
def test_the_similarity_equals_one_that_scipy_filters(side):
    a, b = draw(1, 1, side, side), draw(1, 1, side, side, seed=1)
    x, y = (image[0, 0].double().numpy() for image in (a, b))

    def mean(v):
        return gaussian_filter(v, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = np.mean((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_small_images_get_smaller_windows():
    image = draw(1, 3, 8, 8)
    torch.testing.assert_close(ssim(image, image), torch.ones(1))


def test_distances_of_directions():
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    b = torch.tensor([[5.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert unit_distance(a, b).item() == pytest.approx((0 + 4 + 2) / 3)


class Halves:
    """An encoder whose features are its input's two halves."""

    grid = (1, 2)

    def __init__(self, grid):
        self.grid = grid

    def eval(self):
        return self

    def requires_grad_(self, _):
        return self

    def __call__(self, image):
        return image.flatten(1)

    def patch_features(self, image):
        return image.flatten(1).view(len(image), 2, -1)


def test_an_encoder_is_asked_for_its_patches_where_it_has_them():
    real = draw(4, 3, 2, 2)
    image = real.clone()
    image.flatten(1)[:, :6] *= 2  # the first half keeps its direction
    assert EncoderDistance(Halves((1, 2)))(image, real).item() == pytest.approx(0, abs=1e-6)
    assert EncoderDistance(Halves(None))(image, real).item() > 0.01


def test_gradients_reach_the_image_and_not_the_real_one():
    image, real = (draw(2, 3, 2, 2, seed=s).requires_grad_() for s in range(2))
    EncoderDistance(Halves(None))(image, real).backward()
    assert image.grad is not None
    assert real.grad is None


@pytest.mark.slow
def test_vgg_is_read_from_a_file_and_never_downloaded(tmp_path, monkeypatch):
    torch.save(vgg16().state_dict(), tmp_path / "vgg.pth")
    distance = VGGDistance(str(tmp_path / "vgg.pth"))
    image = draw(1, 3, 32, 32)
    assert distance(image, image).item() == pytest.approx(0, abs=1e-6)
    assert distance(image.requires_grad_(), draw(1, 3, 32, 32, seed=1)).requires_grad


def test_a_missing_vgg_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"download https://.*vgg16.*or set perceptual to encoder or none"):
        VGGDistance(None)


def test_inception_is_shown_bytes(tmp_path, monkeypatch):
    shown = []

    class Network(torch.nn.Module):
        def forward(self, image):
            shown.append(image)
            return (image.float(),)

    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    monkeypatch.setattr("rcg.metrics.inception.FeatureExtractorInceptionV3", lambda *_, **__: Network())
    assert Inception(tmp_path / "weights.pth", "2048")(torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1)).shape == (1, 3)
    assert shown[0].dtype == torch.uint8
    assert shown[0].flatten().tolist() == [0, 128, 255]


def test_a_file_that_is_no_inception_network_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit torch-fidelity's InceptionV3"):
        Inception(tmp_path / "other.pth", "2048")
