"""Draws for the samples of a batch, whichever part of it a process or a micro-batch has."""

import pytest
import torch

from rcg.core.rng import batch_draws, draws

CPU = torch.device("cpu")
KINDS = {
    "uniform": lambda count: draws().uniform((count, 3, 5), CPU),
    "normal": lambda count: draws().normal((count, 3, 5), CPU),
    "integers": lambda count: draws().integers(1000, (count, 7), CPU),
    "bits": lambda count: draws().bits((count, 3, 5)),
}


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_draw_what_the_whole_would(kind, parts):
    with batch_draws(5, 0, 12, 12):
        expected = [KINDS[kind](12) for _ in range(2)]
    assert not torch.equal(*expected)
    count = 12 // parts
    drawn = []
    for part in range(parts):
        torch.manual_seed(part)
        with batch_draws(5, part * count, count, 12):
            drawn.append([KINDS[kind](count) for _ in range(2)])
    for i in range(2):
        assert torch.equal(torch.cat([pair[i] for pair in drawn]), expected[i])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_samples_at_even_places_are_the_same_in_all_parts(count):
    places, drawn = [], []
    for first in range(0, 12, count):
        with batch_draws(5, first, count, 12), draws().spread(0.5, count) as chosen:
            mine = torch.arange(first, first + count)[chosen]
            places += mine.tolist()
            drawn.append(draws().normal((len(mine), 2), CPU))
    assert places == [0, 2, 4, 6, 8, 10]
    with batch_draws(5, 0, 12, 12), draws().spread(0.5, 12):
        assert torch.equal(torch.cat(drawn), draws().normal((6, 2), CPU))


def test_bits_are_even_and_independent():
    with batch_draws(5, 3, 1, 9):
        bits = draws().bits((1, 400_000)).double()
    assert abs(bits.mean()) < 100
    assert bits.std() == pytest.approx(65536 / 12**0.5, rel=0.01)
    assert abs(torch.corrcoef(torch.stack([bits[0, :-1], bits[0, 1:]]))[0, 1]) < 0.01


def test_what_is_drawn_again_is_the_same_and_moves_nothing():
    with batch_draws(5, 0, 4, 4):
        draws().normal((4,), CPU)
        first, second = draws().replay()
        with first:
            once = draws().normal((4,), CPU)
        after = draws().normal((4,), CPU)
        with second:
            assert torch.equal(draws().normal((4,), CPU), once)
        assert not torch.equal(draws().normal((4,), CPU), after)


def test_outside_of_a_step_draws_are_torchs():
    torch.manual_seed(1)
    drawn = draws().normal((4,), CPU)
    torch.manual_seed(1)
    assert torch.equal(torch.randn(4), drawn)


def test_draws_that_are_not_one_per_sample_are_refused():
    with batch_draws(5, 0, 4, 8), pytest.raises(ValueError, match="a row for each is needed"):
        draws().normal((3, 2), CPU)
