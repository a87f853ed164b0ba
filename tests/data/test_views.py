"""Views are read row by row, wherever their shards are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rcg.core.errors import UserError
from rcg.data.views import ShardedViews


def shards(count=23, views=3, width=4, length=10):
    whole = torch.randn(count, views, width)
    return whole, [whole[start : start + length] for start in range(0, count, length)]


def test_rows_of_shards_are_rows_of_the_whole():
    whole, parts = shards()
    views = ShardedViews(parts)
    assert (len(views), views.views) == (23, 3)
    positions, chosen = torch.randint(23, (50,)), torch.randint(3, (50,))
    assert torch.equal(views.rows(positions, chosen), whole[positions, chosen])
    assert torch.equal(views.rows([22, 0], [1, 2]), torch.stack([whole[22, 1], whole[0, 2]]))


def test_transforms_follow_each_other():
    whole, parts = shards()
    views = ShardedViews(parts).map(lambda rows: rows[:, :2]).map(lambda rows: rows + 1)
    assert torch.equal(views.rows([3, 12], [0, 1]), whole[[3, 12], [0, 1], :2] + 1)


def test_a_file_is_mapped_and_not_copied(tmp_path):
    whole, _ = shards()
    save_file({"rep": whole}, tmp_path / "a.safetensors")
    mapped = load_file(tmp_path / "a.safetensors")["rep"]
    lines = Path("/proc/self/maps").read_text()
    assert "a.safetensors" in lines
    assert torch.equal(ShardedViews([mapped]).rows([5], [1])[0], whole[5, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_where_they_are_read(value, tmp_path):
    whole = torch.ones(3, 2, 4)
    whole[1, 1, 3] = value
    views = ShardedViews([whole], origin=tmp_path).map(lambda rows: rows * 2)
    assert views.rows([0, 1], [1, 0]).shape == (2, 4)
    with pytest.raises(UserError, match=f"stored values from {tmp_path}, .*are not finite"):
        views.rows([0, 1], [0, 1])
