"""What trackers get: every tracker of accelerate gets the configuration and the sample grids."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from rcg.config import TrainConfig, load_experiment
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.training import trackers
from tests.toy import write

IMAGE = torch.rand(3, 4, 6)


def test_tensorboard_gets_the_configuration_and_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    experiment = load_experiment(write(tmp_path))
    accelerator = launch(TrainConfig(tracker="tensorboard", precision="no"), tmp_path)
    trackers.start(accelerator, "tensorboard", experiment)
    trackers.log_image(accelerator, "samples", IMAGE, 3)
    for tracker in accelerator.trackers:
        tracker.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Images("samples")
    assert (event.step, event.width, event.height) == (3, 6, 4)
    text = next(tmp_path.glob("tensorboard/*/hparams.yml")).read_text()
    assert "rdm.width: 16" in text
    assert "rdm.train.steps: 20" in text


@pytest.mark.parametrize("name", LOGGER_TYPE_TO_CLASS)
def test_every_tracker_gets_pictures(name, monkeypatch):
    tracker = MagicMock()
    tracker.name = name
    modules = {module: MagicMock() for module in ("mlflow", "trackio")}
    for module, fake in modules.items():
        monkeypatch.setitem(sys.modules, module, fake)
    trackers.log_image(SimpleNamespace(trackers=[tracker]), "samples", IMAGE, 3)
    calls = [*tracker.mock_calls, *modules["mlflow"].mock_calls]
    assert len(calls) == 1
    assert "samples" in str(calls[0])
    if name not in ("mlflow", "comet_ml", "dvclive", "trackio"):  # these have no log_images in accelerate
        assert "log_images" in vars(LOGGER_TYPE_TO_CLASS[name])
    assert name in trackers.SENDERS


def test_a_tracker_that_does_not_start_is_a_sentence():
    accelerator = MagicMock()
    accelerator.init_trackers.side_effect = ValueError("no API key\nconfigured")
    with pytest.raises(UserError, match=r"does not start \(no API key configured\): train.tracker=none"):
        trackers.start(accelerator, "rcg", None)


def test_settings_are_flat_and_plain():
    values = {"a": {"b": {"c": None, "d": [1, 2]}, "e": 0.5}, "f": True, "g": "x"}
    assert trackers.flattened(values) == {"a.b.c": "None", "a.b.d": "[1, 2]", "a.e": 0.5, "f": True, "g": "x"}
