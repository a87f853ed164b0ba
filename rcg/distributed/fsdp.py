"""Modules whose parameters are cut into shards, one for each process: fully sharded data parallelism (FSDP)."""

from __future__ import annotations

import os
from copy import deepcopy

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, StateDictType
from torch.distributed.tensor import DTensor, distribute_tensor

from rcg.config import TrainConfig
from rcg.core.errors import UserError


def asked_for() -> bool:
    """Whether the launcher was configured to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def plugin(config: TrainConfig, precision: str, shardable: bool) -> FullyShardedDataParallelPlugin:
    """Read the rest of accelerate's configuration of FSDP, as far as it can be followed.

    Raises:
        UserError: it cannot be, or what is to be trained cannot be sharded.
    """
    if not shardable:
        raise UserError("FSDP shards RDMs and generators; encoders and tokenizers are trained without it")
    if config.compile:
        raise UserError("train.compile does not go with FSDP: set train.compile=false, or launch without FSDP")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate's configuration asks for the first version of FSDP: set fsdp_version: 2")
    # Shards stay in float32 and are gathered in the precision in which autocast would use them anyway.
    computed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Every process draws the same weights, so that none has to wait for the first one's.
    found = FullyShardedDataParallelPlugin(mixed_precision_policy=policy, cpu_ram_efficient_loading=False)
    if found.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise UserError(
            f"accelerate's configuration says fsdp_state_dict_type: {found.state_dict_type.name}, whose files hold "
            f"pickled code: set FULL_STATE_DICT"
        )
    return found


def shard_on_cpus(accelerator: Accelerator, shards: FullyShardedDataParallelPlugin) -> None:
    """Make accelerate do on CPUs what torch does there as well; it would leave modules whole without a word."""
    accelerator.state.fsdp_plugin = shards
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP


def shard(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: all of it, unless it is cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; if it is cut, every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor as `like` is cut; every process has to give the same one."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def announce(module: nn.Module, accelerator: Accelerator) -> None:
    """Tell accelerate, before it shards `module`, how: layer by layer, and computing in the precision asked for."""
    module.to(memory_format=torch.contiguous_format)  # the only one that torch shards
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    layers = {type(layer).__name__ for part in lists for layer in part if not isinstance(layer, nn.ModuleList)}
    vars(module)["_no_split_modules"] = sorted(layers)
    # Around the forward pass of a module that it does not shard accelerate lays this itself.
    module.forward = accelerator.autocast()(module.forward)


def cut_parameters(module: nn.Module, like: nn.Module) -> None:
    """Keep of a copy of `like`, made before it was sharded, what this process keeps of `like` itself."""
    for (name, _), theirs in zip(list(module.named_parameters()), like.parameters(), strict=True):
        if isinstance(theirs, DTensor):
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, nn.Parameter(theirs.detach().clone(), requires_grad=False))


def assembled(module: nn.Module, keep: bool) -> nn.Module:
    """Return a copy of a module with whole parameters, or the module itself if none is cut.

    Every process has to ask; those that do not `keep` the copy get the module.
    """
    found = {}
    for p in module.parameters():
        if isinstance(p, DTensor):
            full = whole(p)  # one at a time, so that other processes never hold them all
            if keep:
                found[id(p)] = nn.Parameter(full, requires_grad=False)
    return deepcopy(module, found) if found else module
