"""The optimizer of a module: AdamW, or Muon for the matrices inside the blocks of networks and AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rcg.config import TrainConfig
from rcg.core.contracts import Denoiser


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters of `module` that are trained; see `TrainConfig.optimizer`.

    Each of its groups has an `lr_scale`, the factor from the scheduled learning rate to its own.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden = _hidden_matrices(module) if config.optimizer == "muon" else set()
    others = [p for p in trained if p not in hidden]
    decayed = [p for p in others if config.decay_all or p.ndim > 1]
    kept = [p for p in others if not (config.decay_all or p.ndim > 1)]
    groups = [_group(decayed, config.weight_decay), _group(kept, 0.0)]
    if config.optimizer == "adamw":
        filled = [group for group in groups if group["params"]]
        return torch.optim.AdamW(filled, lr=config.lr, betas=config.betas, fused=True)

    from timm.optim import Muon

    # What the optimizer of timm calls its fallback is AdamW, and NAdamW with `nesterov`; eps is that of both.
    groups = [group | {"use_muon": False, "nesterov": False, "eps": 1e-8} for group in groups]
    matrices = [p for p in trained if p in hidden]
    scale = (config.muon_lr or config.lr) / config.lr
    groups.append(_group(matrices, config.weight_decay) | {"use_muon": True, "nesterov": True, "lr_scale": scale})
    filled = [group for group in groups if group["params"]]
    return Muon(filled, config.lr, betas=config.betas, ns_coefficients="original", adjust_lr_fn="match_rms_adamw")


def kept_numbers(group: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of what an optimizer keeps of each parameter of a group: tensors of its shape, and `step`."""
    return ("momentum_buffer",) if group.get("use_muon") else ("step", "exp_avg", "exp_avg_sq")


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the scheduled learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def _group(parameters: list[nn.Parameter], weight_decay: float) -> dict[str, Any]:
    return {"params": parameters, "weight_decay": weight_decay, "lr_scale": 1.0}


def _hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    networks = [part for part in module.modules() if isinstance(part, Denoiser)]
    return {parameter for network in networks for parameter in network.hidden_matrices()}
