"""Batch normalization over the batch of all processes, on any device; torch's own `SyncBatchNorm` is for GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SyncBatchNorm(_BatchNorm):
    """Normalizes `(B, C, ...)` by the mean and variance over the batches of all processes, which are equally large."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; in evaluation, by the running statistics."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        mean = self._mean(x.float(), dims)
        centered = x.float() - mean
        variance = self._mean(centered.square(), dims)
        self._remember(mean.detach().flatten(), variance.detach().flatten(), x.numel() // x.shape[1])
        normalized = centered * (variance + self.eps).rsqrt()
        if self.affine:
            shape = [1, -1, *[1] * (x.ndim - 2)]
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(x.dtype)

    def _mean(self, x: Tensor, dims: list[int]) -> Tensor:
        """Return the mean over all processes, with gradients."""
        total: Tensor = _Sum.apply(x.mean(dims, keepdim=True))
        return total / distributed.get_world_size()

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics toward those of a batch of `count` values per channel and process."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        values = count * distributed.get_world_size()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * values / (values - 1), share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any number of dimensions."""


def synchronized(module: nn.Module, device: torch.device) -> nn.Module:
    """Return `module`, which will train on `device`, with batch normalization over the batches of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    return _converted(module)


def _converted(module: nn.Module) -> nn.Module:
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return _like(module)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module


def _like(norm: Any) -> SyncBatchNorm:
    """Return a synchronized copy that shares the parameters and buffers of `norm`."""
    copy = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    copy._parameters, copy._buffers = norm._parameters, norm._buffers
    return copy.train(norm.training)
