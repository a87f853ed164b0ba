"""Fully sharded data parallelism (FSDP): each process holds a shard of every parameter."""

from __future__ import annotations

import os
from copy import deepcopy

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from rcg.config import TrainConfig
from rcg.core.errors import UserError


def is_requested() -> bool:
    """Whether the launcher was configured to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def plugin(config: TrainConfig, precision: str, shardable: bool) -> FullyShardedDataParallelPlugin:
    """Read accelerate's configuration of FSDP.

    Args:
        config: of the training.
        precision: `no`, `bf16` or `fp16`.
        shardable: whether the module in training can be sharded.

    Raises:
        UserError: the module or a setting does not work with FSDP here.
    """
    if not shardable:
        raise UserError("FSDP shards RDMs and generators; encoders and autoencoders are trained without it")
    if config.compile:
        raise UserError("train.compile does not go with FSDP: set train.compile=false, or launch without FSDP")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate's configuration asks for the first version of FSDP: set fsdp_version: 2")
    # Shards stay in float32 and are gathered in the precision in which autocast would use them anyway.
    compute_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Every process draws the same weights, so that none has to wait for the first one's.
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy, cpu_ram_efficient_loading=False)


def shard_on_cpus(accelerator: Accelerator, settings: FullyShardedDataParallelPlugin) -> None:
    """Make accelerate shard on CPUs too, as torch can; it would silently leave modules unsharded."""
    accelerator.state.fsdp_plugin = settings
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP


def prepare_for_sharding(module: nn.Module, accelerator: Accelerator) -> None:
    """Set what accelerate reads when it shards `module`: shard layer by layer, compute in the mixed precision."""
    module.to(memory_format=torch.contiguous_format)  # the only one that torch shards
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    layers = {type(layer).__name__ for part in lists for layer in part if not isinstance(layer, nn.ModuleList)}
    vars(module)["_no_split_modules"] = sorted(layers)
    # accelerate wraps the forward pass of a module in autocast only where it does not shard.
    module.forward = accelerator.autocast()(module.forward)


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor's shards; all processes have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_tensor(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, the same on all processes, as `like` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def shard_parameters(module: nn.Module, like: nn.Module) -> None:
    """Replace the parameters of a copy of `like`, made before `like` was sharded, by copies of the shards of `like`."""
    for (name, _), sharded in zip(list(module.named_parameters()), like.parameters(), strict=True):
        if isinstance(sharded, DTensor):
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, nn.Parameter(sharded.detach().clone(), requires_grad=False))


def unshard(module: nn.Module, keep: bool) -> nn.Module:
    """Return a copy of a module with full parameters, or the module itself if it is not sharded.

    All processes have to call this; those that do not `keep` the copy get the module itself.
    """
    full_parameters = {}
    for p in module.parameters():
        if isinstance(p, DTensor):
            full = full_tensor(p)  # one at a time, so that the other processes never hold them all
            if keep:
                full_parameters[id(p)] = nn.Parameter(full, requires_grad=False)
    return deepcopy(module, full_parameters) if full_parameters else module
