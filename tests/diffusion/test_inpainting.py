"""Images completed by a generator of tokens."""

import pytest
import torch

from rcg.core.contracts import MASK, Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.diffusion.inpainting import box, hide, inpaint, known_tokens, shrink
from rcg.diffusion.samplers.maskgit import MaskGIT
from tests.models import dit, mage
from tests.toy_tokenizer import LEVELS, ToyTokenizer, ToyTokenizerConfig

pytestmark = pytest.mark.usefixtures("toy_autoencoder")

TOKENIZER = ToyTokenizer(ToyTokenizerConfig(), 16)
NAN, INF = float("nan"), float("inf")
STEPS = {"sampler": MaskGIT(steps=3)}
IMAGE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def generator():
    return mage(Space((5,)), data=TOKENIZER.space).eval()


def holes(*boxes):
    return torch.stack([box(16, *edges) for edges in boxes])


def test_a_token_is_masked_when_its_square_touches_the_hole():
    known = known_tokens(TOKENIZER, IMAGE[:1], holes((0.25, 0.25, 0.5, 0.8)))
    masked = (known == MASK)[0]
    assert masked.nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]
    assert torch.equal(known[0][~masked], TOKENIZER.encode(IMAGE[:1])[0][~masked])


class Wide(ToyTokenizer):
    """A tokenizer whose receptive field reaches into the next square."""

    def posterior(self, image):
        return super().posterior(image.roll(4, -1))


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Wide(ToyTokenizerConfig(), 16)])
def test_the_content_of_the_hole_has_no_influence(tokenizer):
    m, hole = generator(), holes((0.1, 0.2, 0.75, 0.5)).expand(3, -1, -1)
    other = torch.where(hole[:, None], 1.0, IMAGE)
    z = torch.randn(3, 5)
    with torch.no_grad():
        one, two = (inpaint(m, tokenizer, x, hole, z, SampleNoise(0, range(3), "t"), **STEPS) for x in (IMAGE, other))
    assert torch.equal(one, two)
    assert torch.equal(known_tokens(tokenizer, IMAGE, hole), known_tokens(tokenizer, other, hole))
    assert torch.equal(hide(IMAGE, hole), hide(other, hole))


def test_pixels_outside_of_the_hole_are_as_they_were_and_each_image_has_a_hole_of_its_own():
    hole = holes((0.25, 0.25, 0.75, 0.75), (0, 0, 1, 1), (0, 0, 0.25, 0.25))
    hole[2] = False
    with torch.no_grad():
        results = inpaint(
            generator(), TOKENIZER, IMAGE, hole, torch.randn(3, 5), SampleNoise(0, range(3), "t"), **STEPS
        )
    known = ~hole[:, None].expand_as(IMAGE)
    assert torch.equal(results[known], IMAGE[known])
    levels = results[1] * (LEVELS - 1)
    torch.testing.assert_close(levels, levels.round())  # this one was generated everywhere


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


def test_a_generator_without_tokens_is_refused():
    with pytest.raises(UserError, match="dit cannot generate parts of an image"):
        inpaint(dit(), TOKENIZER, IMAGE, holes((0, 0, 1, 1)), None, SampleNoise(0, range(3), "t"))
