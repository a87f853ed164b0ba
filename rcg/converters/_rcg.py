"""What the published checkpoints of RCG have in common: averages, the schedule and the frozen encoder beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg import checkpoint, weights
from rcg.converters._files import same
from rcg.errors import UserError
from rcg.processes.gaussian import betas
from rcg.registry import ENCODERS
from rcg.representation import encoder_part

ENCODER = "pretrained_encoder."
LABELS = "cond_stage_model.embedding.weight"


def average_name(key: str) -> str:
    """Return the original name of the moving average of an original tensor `model. ...`.

    Averages are looked up by the names of the live tensors: without their dots they cannot be taken apart.
    """
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def frozen_encoder(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Rebuild the MoCo v3 encoder that the checkpoint carries; None where it carries none."""
    found = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
    if "head.6.weight" not in found:
        return None
    width, _, _, patch = found["patch_embed.proj.weight"].shape
    grid = round((found["pos_embed"].shape[1] - 1) ** 0.5)
    sizes = {384: "vit_small", 768: "vit_base", 1024: "vit_large"}
    network = ENCODERS.get("moco_v3")
    config = network.Config(
        arch=sizes.get(width, "vit_base"),
        width=None if width in sizes else width,
        depth=None if width in sizes else len({key.split(".")[1] for key in found if key.startswith("blocks.")}),
        patch=patch,
        input_size=grid * patch,
        projector_hidden=found["head.0.weight"].shape[0],
        projector_dim=found["head.6.weight"].shape[0],
    )
    encoder = network(config, load=False)
    weights.fit(encoder, encoder.rename(found), path)
    return encoder


def keep_encoder(run: Path, encoder: Any) -> list[Path]:
    """Write the encoder into `run`, unless this very one is there already; return what was written.

    Raises:
        UserError: another encoder is there.
    """
    path = run / "encoder" / checkpoint.FILE
    if not path.is_file():
        checkpoint.save(path, encoder_part(encoder, 256, {"fingerprint": ""}))
        return [path]
    if not same(checkpoint.load(path).tensors, encoder.state_dict()):
        raise UserError(f"{path} holds another encoder than the checkpoint: choose another folder")
    return []


def their_encoder(run: Path) -> dict[str, Tensor]:
    """Return the tensors of the run's encoder under their original names; none where there is none."""
    path = run / "encoder" / checkpoint.FILE
    if not path.is_file():
        return {}
    return {ENCODER + key.removeprefix("trunk."): value for key, value in checkpoint.load(path).tensors.items()}


def schedule() -> dict[str, Tensor]:
    """Return the tables of the sqrt-linear schedule that the original modules keep, `(1000,)` each."""
    beta = betas("sqrt_linear", 1000)
    bar = np.cumprod(1 - beta)
    before = np.append(1.0, bar[:-1])
    posterior = beta * (1 - before) / (1 - bar)
    tables = {
        "betas": beta,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": np.log(np.maximum(posterior, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(before) / (1 - bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - beta) / (1 - bar),
    }
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}
