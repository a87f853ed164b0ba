"""Names of averages and tables of the schedule in RCG's checkpoints of the RDM and of LDM."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rcg.diffusion.processes.gaussian import betas
from rcg.generators.published._files import Tensors

LABELS = "cond_stage_model.embedding.weight"
NETWORK = "model.diffusion_model."
AVERAGE = "model_ema.diffusion_model"
DECAY, UPDATES = "model_ema.decay", "model_ema.num_updates"


def average_name(key: str) -> str:
    """Return the original name of the moving average of an original tensor `model. ...`.

    Averages are looked up by the names of the live tensors: names without dots cannot be split again.
    """
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def with_average(live: Tensors, average: Tensors, decay: float, updates: int) -> dict[str, Tensor]:
    """Return live and averaged tensors, both by the original names of the live ones, as an original file holds them."""
    named = {average_name(key): average[key] for key in live}
    counters = {DECAY: torch.tensor(decay), UPDATES: torch.tensor(updates, dtype=torch.int32)}
    return {**live, **named, **counters}


def with_null_row(table: Tensor) -> Tensor:
    """Append the null label to a table of classes, as zeros: the published models never saw one."""
    return torch.cat([table, torch.zeros_like(table[:1])])


def schedule() -> dict[str, Tensor]:
    """Return the tables of the sqrt-linear schedule that the original modules hold, `(1000,)` each."""
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
