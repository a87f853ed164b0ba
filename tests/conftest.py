"""What all tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def data() -> Path:
    """Recorded inputs and outputs of the published models at tiny sizes."""
    return Path(__file__).parent / "reference"
