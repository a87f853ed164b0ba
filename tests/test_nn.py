import pytest
import torch

from rcg.nn import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(997, 1003, dtype=dtype), 0.1)
    zeros = (y == 0).double().mean()
    assert float(zeros) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / y.numel()) ** 0.5)
    assert float(y.max()) == pytest.approx(1 / 0.9, rel=torch.finfo(dtype).eps)


def test_dropout_follows_torchs_seed_and_lets_gradients_through_where_it_keeps():
    x = torch.ones(5, 7, requires_grad=True)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    drawn[0].sum().backward()
    assert torch.equal(x.grad, drawn[0].detach())


def test_neighbors_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1_000_000), 0.5) > 0).double()
    for lag in (1, 2, 4, 64):
        assert abs(float(torch.corrcoef(torch.stack([kept[lag:], kept[:-lag]]))[0, 1])) < 0.004


def test_dropout_does_nothing_outside_training():
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not torch.equal(Dropout(0.5)(x), x)
