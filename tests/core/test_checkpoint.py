"""Self-describing files: whole or not at all."""

import errno
import fcntl
import os
import platform
import stat
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rcg.core import checkpoint
from rcg.core.errors import UserError


def part():
    return checkpoint.Part("rdm", {"name": "rep_mlp"}, checkpoint.Facts(step=3), {"w": torch.arange(6.0).view(2, 3)})


def test_a_part_comes_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path / "a" / "model.safetensors", part())
    found = checkpoint.load(tmp_path / "a" / "model.safetensors")
    assert (found.kind, found.config, found.facts) == ("rdm", {"name": "rep_mlp"}, checkpoint.Facts(step=3))
    assert torch.equal(found.tensors["w"], part().tensors["w"])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, part())
    before = path.read_bytes()

    def fail():
        with checkpoint.atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["write", "safetensors"],
)
def test_a_full_disk_is_reported_with_the_file(error, tmp_path, monkeypatch):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("rcg.core.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        checkpoint.save(tmp_path / "model.safetensors", part())
    assert refused.value.filename == str(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_in_a_folder_vanishes_and_what_a_living_one_writes_stays(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = platform.node()
    dead, alive = (f".writing-{host}-{number}-abc" for number in (process.pid, os.getppid()))
    names = (dead, alive, f".writing-elsewhere-{process.pid}-abc", f".writing-{host}-x", ".DS_Store")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path / "model.safetensors", part())
    assert {path.name for path in tmp_path.iterdir()} == {*names, "model.safetensors"} - {dead}
    checkpoint.clear_temporaries(tmp_path / "elsewhere")  # a folder that is not there holds none


def test_a_file_is_flushed_by_a_handle_for_writing_and_its_name_with_it(tmp_path, monkeypatch):
    flushed = []

    def note(descriptor):
        mode = os.fstat(descriptor).st_mode
        flushed.append((stat.S_ISDIR(mode), fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE))

    monkeypatch.setattr(os, "fsync", note)
    checkpoint.save(tmp_path / "model.safetensors", part())
    assert flushed == [(False, os.O_RDWR), (True, os.O_RDONLY)]


@pytest.mark.parametrize("size", [0, 4, 100, -5])
def test_a_truncated_file_is_named(tmp_path, size):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, part())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        checkpoint.load(path)


def test_foreign_and_missing_files_are_named(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="was not written by rcg"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="there is no file"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_the_digest_follows_names_shapes_types_and_values():
    w = torch.arange(6.0)
    digests = {
        checkpoint.digest(tensors)
        for tensors in ({"w": w}, {"v": w}, {"w": w.view(2, 3)}, {"w": w.long()}, {"w": w + 1}, {"w": w, "v": w})
    }
    assert len(digests) == 6
    assert checkpoint.digest({"w": w, "v": w}) == checkpoint.digest({"v": w, "w": w})


def test_files_are_as_readable_as_others(tmp_path):
    mask = os.umask(0o002)
    try:
        checkpoint.save(tmp_path / "model.safetensors", part())
        (tmp_path / "other").touch()
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o664}
