"""The lock of a run: one command writes at a time, and a dead one stops nobody."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
import time

import pytest

from rcg.core.errors import UserError
from rcg.encoding import lock
from rcg.encoding.lock import run_lock
from tests.toy import ROOT, complaint, tool, write

HOLDER = """
import os, sys, time
from pathlib import Path
from rcg.encoding.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:  # a loader process, which inherits the lock
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    (Path(sys.argv[1]) / "held").touch()
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """Return a function that starts a process which holds the lock of the run in `tmp_path`."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}))
        deadline = time.time() + 30
        while not (tmp_path / "run" / "held").exists():
            assert started[-1].poll() is None
            assert time.time() < deadline
            time.sleep(0.02)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_command_is_refused_in_a_sentence_that_names_the_first(tmp_path, held):
    process = held()
    path = write(tmp_path)
    said = (
        rf"-c .*run \(process {process.pid} on {platform.node()}, since 20\d\d-.*\) is writing into .*run: wait until"
    )
    for name in ("train_encoder", "train_rdm --overwrite", "train_pixel --resume", "cache", "compare"):
        name, *options = name.split()
        assert re.search(said, complaint(tool(name, path, *options))), name
    assert {file.name for file in (tmp_path / "run").iterdir()} == {".lock", ".lock-owner.json", "held"}


def test_the_lock_of_a_killed_command_is_free_though_its_loaders_live_for_a_while(tmp_path, held):
    process = held(1.0)
    process.kill()
    process.wait()
    with run_lock(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / ".lock-owner.json").read_text())
        assert owner["pid"] == os.getpid()
    assert not (tmp_path / "run" / ".lock-owner.json").exists()


def test_a_description_that_is_missing_or_torn_stops_nobody_for_ever(tmp_path, held, monkeypatch):
    monkeypatch.setattr(lock, "GRACE", 0.1)
    held()
    (tmp_path / "run" / ".lock-owner.json").write_text('{"comm')
    with pytest.raises(UserError, match="another command is writing into"), run_lock(tmp_path / "run"):
        pass


def test_a_run_that_is_held_may_be_held_again_and_a_run_without_files_vanishes(tmp_path):
    run = tmp_path / "a" / "run"
    with run_lock(run), run_lock(run):
        assert (run / ".lock-owner.json").is_file()
    assert not run.exists()
    with run_lock(run):
        (run / "rdm").mkdir()
    assert run.is_dir()


def test_processes_but_the_first_leave_the_lock_to_it(tmp_path, held, monkeypatch):
    held()
    monkeypatch.setenv("RANK", "1")
    with run_lock(tmp_path / "run"):
        pass


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file, but a folder is needed"), run_lock(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def fail(lock, timeout):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.FileLock, "acquire", fail)
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "work").touch()
    assert "on a file system without locks" in capsys.readouterr().err


def test_folders_that_were_made_for_nothing_vanish(tmp_path):
    with run_lock(tmp_path / "a" / "b" / "run"):
        pass
    assert not list(tmp_path.iterdir())
