"""The store of computed tensors: shards that are missing, shards of something else, several stores in one pass."""

import pytest
import torch

from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.data.store import ShardedStore, fill
from rcg.distributed.launch import launch


def store(folder, **facts):
    return ShardedStore(folder, {"network": "a", **facts}, count=10, shard_size=4)


def squares(positions, names, advance):
    """Compute the squares of positions for all stores that ask for them."""
    advance(len(positions))
    return {name: {"rows": torch.tensor(positions, dtype=torch.float32) ** 2} for name in names}


def test_the_last_shard_has_the_remaining_items(tmp_path):
    assert store(tmp_path).shards == [range(4), range(4, 8), range(8, 10)]
    assert store(tmp_path).missing == store(tmp_path).shards


def test_only_missing_shards_are_computed_and_read_in_order(tmp_path):
    first, computed = store(tmp_path), []

    def compute(positions, names, advance):
        computed.append(positions)
        return squares(positions, names, advance)

    fill({"a": first}, compute, launch(), "squares")
    assert computed == first.shards
    assert not first.missing
    first.path(range(4, 8)).unlink()
    assert first.missing == [range(4, 8)]
    fill({"a": first}, compute, launch(), "squares")
    assert computed[3:] == [range(4, 8)]
    assert torch.cat(list(first.tensors("rows"))).tolist() == [i**2 for i in range(10)]


def test_two_stores_are_filled_in_one_pass_over_the_items(tmp_path):
    one, two = store(tmp_path / "one"), store(tmp_path / "two")
    one.write(range(4), {"rows": torch.zeros(4)})
    asked = []

    def compute(positions, names, advance):
        asked.append((positions, list(names)))
        return squares(positions, names, advance)

    fill({"one": one, "two": two}, compute, launch(), "squares")
    assert asked == [(range(4), ["two"]), (range(4, 8), ["one", "two"]), (range(8, 10), ["one", "two"])]
    assert torch.cat(list(one.tensors("rows"))).tolist() == [0, 0, 0, 0, 16, 25, 36, 49, 64, 81]
    assert torch.cat(list(two.tensors("rows"))).tolist() == [i**2 for i in range(10)]


def test_shards_with_other_facts_are_refused(tmp_path):
    fill({"a": store(tmp_path, images="x")}, squares, launch(), "squares")
    with pytest.raises(UserError, match="holds tensors of other images or of another network") as refused:
        list(store(tmp_path, images="y").tensors("rows"))
    assert f"delete {tmp_path}" in str(refused.value)


def test_a_computation_that_fails_leaves_the_shards_before_it_and_no_half_written_file(tmp_path):
    def compute(positions, names, advance):
        if positions.start == 4:
            raise KeyboardInterrupt
        return squares(positions, names, advance)

    with pytest.raises(KeyboardInterrupt):
        fill({"a": store(tmp_path)}, compute, launch(), "squares")
    assert [path.name for path in tmp_path.iterdir()] == ["000000000-000000004.safetensors"]
    assert store(tmp_path).missing == [range(4, 8), range(8, 10)]


def truncated(shard):
    shard.write_bytes(shard.read_bytes()[:-3])


def empty(shard):
    shard.write_bytes(b"")


def text(shard):
    shard.write_text("no tensors", encoding="utf-8")


def short(shard):
    checkpoint.save_tensors(shard, {"rows": torch.zeros(3)}, {"network": "a"})


def claims_too_much(shard):
    """Let the header describe terabytes."""
    header = b'{"rows":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    shard.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("damage", [truncated, empty, text, short, claims_too_much])
def test_a_damaged_shard_is_named_and_computed_again(tmp_path, damage, capsys):
    fill({"a": store(tmp_path)}, squares, launch(), "squares")
    shard = store(tmp_path).path(range(4, 8))
    damage(shard)
    assert store(tmp_path).missing == [range(4, 8)]
    fill({"a": store(tmp_path)}, squares, launch(), "squares")
    warning = capsys.readouterr().err
    assert str(shard) in warning
    assert "computed again" in warning
    assert torch.cat(list(store(tmp_path).tensors("rows"))).tolist() == [i**2 for i in range(10)]


def test_a_shard_without_the_tensor_is_one_sentence(tmp_path):
    fill({"a": store(tmp_path)}, squares, launch(), "squares")
    with pytest.raises(UserError, match=r"000000000-000000004\.safetensors holds rows and no 'columns': delete"):
        list(store(tmp_path).tensors("columns"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_where_they_are_computed(tmp_path, value):
    def compute(positions, names, advance):
        rows = torch.ones(len(positions), 2, 3)
        if positions.start == 4:
            rows[2, 1, 0] = value
        return {name: {"rows": rows} for name in names}

    with pytest.raises(UserError, match=r"squares: .* of image 6 that are not finite"):
        fill({"a": store(tmp_path)}, compute, launch(), "squares")
    assert store(tmp_path).missing == [range(4, 8), range(8, 10)]


def test_whole_numbers_are_finite(tmp_path):
    fill({"a": store(tmp_path)}, lambda p, n, a: {"a": {"rows": torch.tensor(p)}}, launch(), "numbers")
    assert torch.cat(list(store(tmp_path).tensors("rows"))).tolist() == list(range(10))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        fill({"a": store(tmp_path / place)}, lambda *_: pytest.fail("worked"), launch(), "squares")


def test_a_full_disk_leaves_no_half_written_shard(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fill({"a": store(tmp_path)}, squares, launch(), "squares")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    fill({"a": store(tmp_path)}, squares, launch(), "squares")
    assert not store(tmp_path).missing


def test_what_a_killed_fill_left_does_not_stop_the_next(tmp_path):
    first = store(tmp_path).path(range(4))
    first.with_name(f".{first.name}.999999").write_bytes(b"half")
    (tmp_path / ".writing-other-machine-1-abc").mkdir()
    (tmp_path / ".writing-other-machine-1-abc" / first.name).write_bytes(b"half")
    fill({"a": store(tmp_path)}, squares, launch(), "squares")
    assert torch.cat(list(store(tmp_path).tensors("rows"))).tolist() == [i**2 for i in range(10)]
