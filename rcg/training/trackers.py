"""What the trackers that accelerate knows get beside the curves: the configuration, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from rcg.config import Config
from rcg.core.errors import UserError


def start(accelerator: Accelerator, project: str, config: Config | None) -> None:
    """Open the accelerator's trackers, with a configuration where there is one.

    Raises:
        UserError: a tracker does not start, for want of a login or a network, say.
    """
    settings = None if config is None else flattened(config.model_dump(mode="json"))
    try:
        accelerator.init_trackers(project, config=settings)
    except Exception as error:  # each tracker has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the tracker does not start ({reason[:200]}): train.tracker=none goes without") from error


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, str | int | float | bool]:
    """Return the leaves of nested settings by their dotted keys, as trackers take them."""
    leaves: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            leaves |= flattened(value, f"{path}{key}.")
        else:
            leaves[f"{path}{key}"] = value if isinstance(value, str | int | float) else str(value)
    return leaves


def log_image(accelerator: Accelerator, name: str, image: Tensor, step: int) -> None:
    """Send a picture `(3, H, W)` in [0, 1] to all trackers."""
    picture = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    for tracker in accelerator.trackers:
        SENDERS.get(tracker.name, _as_list)(tracker, name, picture, step)


def _as_list(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    tracker.log_images({name: [picture]}, step=step)


def _alone(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    tracker.log_images({name: picture}, step=step)


def _to_tensorboard(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")


def _to_comet(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    tracker.tracker.log_image(picture, name=name, step=step)


def _to_dvclive(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    tracker.tracker.log_image(f"{name}-{step}.png", picture)


def _to_mlflow(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    import mlflow

    mlflow.log_image(picture, artifact_file=f"{name}-{step}.png")


def _to_trackio(tracker: Any, name: str, picture: np.ndarray, step: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(picture)}, step=step)


SENDERS: dict[str, Callable[[Any, str, np.ndarray, int], None]] = {
    "aim": _alone,
    "clearml": _alone,
    "comet_ml": _to_comet,
    "dvclive": _to_dvclive,
    "mlflow": _to_mlflow,
    "swanlab": _as_list,
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _as_list,
}
"""How each tracker takes a picture `(H, W, 3)`, uint8."""
