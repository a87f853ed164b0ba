"""Images completed by generators of tokens, pixels and latents."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from rcg.core.contracts import MASK, Autoencoder, Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.diffusion.inpainting import box, hide, inpaint, known_data, shrink, touching
from rcg.diffusion.repaint import Resampling
from rcg.generators.autoencoders.pixels import Pixels, PixelsConfig
from tests.models import dit, mage
from tests.toy_tokenizer import ToyTokenizer, ToyTokenizerConfig

pytestmark = pytest.mark.usefixtures("toy_autoencoder")

TOKENIZER = ToyTokenizer(ToyTokenizerConfig(), 16)
NAN, INF = float("nan"), float("inf")
IMAGE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Wide(ToyTokenizer):
    """A tokenizer whose receptive field reaches into the next square."""

    def posterior(self, image):
        return super().posterior(image.roll(4, -1))


class Quarters(Autoencoder):
    """Latents without weights: the mean color of each square of 4 x 4 pixels."""

    @property
    def space(self):
        return Space((3, 4, 4), id="quarters")

    def posterior(self, image):
        return avg_pool2d(image, 4) * 2 - 1

    def draw(self, posterior):
        raise AssertionError("what is known must not be random")

    def decode(self, latent):
        return interpolate((latent + 1) / 2, scale_factor=4)


def generator(autoencoder):
    """A MAGE or a DiT with random weights that works in an autoencoder's space, in three steps."""
    if autoencoder.space.vocab is not None:
        return mage(Space((5,)), data=autoencoder.space, sampler={"name": "maskgit", "steps": 3}).eval()
    settings = {"patch": 2, "process": {"name": "flow"}, "sampler": {"name": "ddim", "steps": 3, "eta": 1}}
    return dit(Space((5,)), data=autoencoder.space, **settings).eval()


SPACES = pytest.mark.parametrize(
    "autoencoder",
    [Pixels(PixelsConfig(), 16), Quarters(None, 16), TOKENIZER, Wide(ToyTokenizerConfig(), 16)],
    ids=["pixels", "latents", "tokens", "wide tokens"],
)


@torch.no_grad()
def fill(autoencoder, image, hole, rows=(0, 1, 2), **options):
    """Complete some rows, each with a condition and noise of its own; return them, and samples without an image."""
    m, rows, z = generator(autoencoder), list(rows), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))

    def noise(chosen):
        return SampleNoise(0, [rows[i] for i in chosen], "t")

    filled = inpaint(m, autoencoder, image[rows], hole[rows], z[rows], noise, **options)
    return filled, autoencoder.decode(m.sample(z[rows], SampleNoise(0, rows, "t")))


def holes(*boxes):
    return torch.stack([box(16, *edges) for edges in boxes])


def test_a_token_is_masked_when_its_square_touches_the_hole():
    known = known_data(TOKENIZER, IMAGE[:1], holes((0.25, 0.25, 0.5, 0.8)))
    masked = (known == MASK)[0]
    assert masked.nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]
    assert torch.equal(known[0][~masked], TOKENIZER.encode(IMAGE[:1])[0][~masked])


def test_a_hole_is_hidden_behind_the_mean_of_the_rest():
    hole = holes((0, 0, 0.5, 1), (0, 0, 1, 1))
    hidden = hide(IMAGE[:2], hole)
    torch.testing.assert_close(hidden[0, :, 0, 0], IMAGE[0, :, :, 8:].mean((1, 2)))
    assert (hidden[1] == 0.5).all()


def test_uncropping_keeps_the_shrunken_image_in_the_middle():
    flat = torch.full((1, 3, 16, 16), 0.25)
    small, hole = shrink(flat, 0.5)
    assert torch.equal(~hole, holes((0.25, 0.25, 0.75, 0.75)))
    assert (small[:, :, 4:12, 4:12] - 0.25).abs().max() < 1e-6
    assert shrink(flat, 0.45)[0].shape == flat.shape


@pytest.mark.parametrize(
    "edges", [(0.5, 0, 0.5, 1), (0.6, 0, 0.4, 1), (-0.2, 0, 1, 1), (0, 0, 1, 1.3), (NAN, 0, 1, 1), (0, 0, 1, INF)]
)
def test_impossible_boxes_are_refused(edges):
    with pytest.raises(UserError, match="rising shares of the side"):
        box(16, *edges)


@pytest.mark.parametrize("share", [0, 1, 1.5, 0.01, NAN, INF])
def test_shares_that_leave_nothing_are_refused(share):
    with pytest.raises(UserError, match="between 0 and 1"):
        shrink(IMAGE, share)


@SPACES
def test_holes_of_any_size_in_one_batch_are_filled_as_alone(autoencoder):
    hole = holes((0.3, 0.3, 0.8, 0.7), (0, 0, 1, 1), (0, 0, 1, 1))
    hole[2] = False
    together, fresh = fill(autoencoder, IMAGE, hole)
    assert torch.equal(together[0][:, ~hole[0]], IMAGE[0][:, ~hole[0]])
    assert not torch.equal(together[0], IMAGE[0])
    torch.testing.assert_close(together[1], fresh[1])  # a full hole: generation
    assert torch.equal(together[2], IMAGE[2])  # an empty one: the image
    for row in range(3):
        torch.testing.assert_close(fill(autoencoder, IMAGE, hole, [row])[0][0], together[row])


@SPACES
def test_what_is_hidden_has_no_influence(autoencoder):
    hole = holes((0.1, 0.2, 0.75, 0.5)).expand(3, -1, -1)
    other = torch.where(hole[:, None], 1.0, IMAGE)
    one, two = (fill(autoencoder, x, hole)[0] for x in (IMAGE, other))
    assert torch.equal(one, two)


def test_latents_are_unknown_where_their_square_touches_the_hole():
    known = known_data(Quarters(None, 16), IMAGE[:1], holes((0.25, 0.25, 0.5, 0.8)))
    assert known[0].isnan().nonzero().tolist() == [[c, y, 1] for c in range(3) for y in (1, 2, 3)]
    assert torch.equal(known[0, :, 0], Quarters(None, 16).posterior(IMAGE)[0, :, 0])
    assert touching(holes((0.3, 0, 0.5, 0.25)), (2, 2)).tolist() == [[[True, False], [False, False]]]


@pytest.mark.parametrize("autoencoder", [Pixels(PixelsConfig(), 16), Quarters(None, 16)], ids=["pixels", "latents"])
def test_what_is_visible_has_an_influence(autoencoder):
    hole = holes((0.1, 0.2, 0.75, 0.5)).expand(3, -1, -1)
    one, two = (fill(autoencoder, x, hole)[0][:, :, hole[0]] for x in (IMAGE, 1 - IMAGE))
    assert not torch.allclose(one, two)


def test_a_full_hole_of_cells_needs_no_resampling():
    hole = holes((0.1, 0.1, 0.9, 0.9)).expand(3, -1, -1)  # it touches all squares
    one, fresh = fill(Quarters(None, 16), IMAGE, hole, resampling=Resampling(7))
    assert torch.equal(one[:, :, hole[0]], fresh[:, :, hole[0]])
