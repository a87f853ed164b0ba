"""Fixtures that several test modules share."""

import os
import shutil
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as rcg.cli does: before torch is loaded

from rcg.core.registry import AUTOENCODERS
from tests.toy import train, write


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch) -> None:
    """Spare the tests of this process the waits in which files become lasting."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let Ctrl-C end the tests although tools that end in this process ignore it from then on."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def data() -> Path:
    """Recorded inputs and outputs of the published models at tiny sizes."""
    return Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """A folder with toy.yaml and its run, encoder, RDM and generator trained; nobody may change it."""
    folder = tmp_path_factory.mktemp("toy")
    path = write(folder)
    for stage in ("encoder", "rdm", "generator"):
        train(stage, path)
    return folder


@pytest.fixture
def toy_copy(toy_run, tmp_path) -> Path:
    """The configuration of a copy of `toy_run` in `tmp_path` that a test may change."""
    shutil.copytree(toy_run / "run", tmp_path / "run")
    return write(tmp_path)


@pytest.fixture(scope="module")
def toy_autoencoder():
    """Register the tokenizer without weights under its name, `toy_tokenizer`, for the tests of one module."""
    from tests.toy_tokenizer import ToyTokenizer

    AUTOENCODERS.register(ToyTokenizer)
    yield ToyTokenizer
    AUTOENCODERS._classes.pop("toy_tokenizer")
