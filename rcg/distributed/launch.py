"""Where a program runs: how many processes, which device, how many threads."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, GradientAccumulationPlugin, is_wandb_available
from torch import Tensor, distributed

from rcg.config import TrainConfig
from rcg.core.errors import UserError
from rcg.distributed import fsdp as sharding


def start(
    config: TrainConfig | None = None, folder: str | os.PathLike[str] | None = None, shardable: bool = False
) -> Accelerator:
    """Join the processes that the launcher started, with the precision and trackers of `config`.

    Without a `config` nothing is trained, and the precision stays what it is, of a training before or after this;
    `shardable` says whether what is trained can be sharded (FSDP).

    Raises:
        UserError: the precision, the tracker or the sharding asked for does not exist here.
    """
    _use_all_cores()
    if config is None:
        return Accelerator(mixed_precision=None if is_initialized() else "no")
    # Each micro-batch is one global batch's share, so the loop, not the end of a loader, ends an accumulation.
    plugin = GradientAccumulationPlugin(num_steps=config.grad_accum_steps, sync_with_dataloader=False)
    tracker = None if config.tracker == "none" else config.tracker
    if tracker == "wandb" and not is_wandb_available():
        raise UserError(
            "train.tracker is wandb, which is not installed: pip install wandb, or choose tensorboard or none"
        )
    precision = resolve_precision(config.precision)
    shards = sharding.plugin(config, precision, shardable) if sharding.asked_for() else None
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=plugin,
        fsdp_plugin=shards,
        log_with=tracker,
        project_dir=folder,
    )
    if shards and accelerator.distributed_type == DistributedType.MULTI_CPU:
        sharding.shard_on_cpus(accelerator, shards)
    return accelerator


def resolve_precision(asked: str) -> str:
    """Turn `auto` into bf16 where the device multiplies it natively, else no.

    Raises:
        UserError: fp16 without a GPU.
    """
    gpu = torch.cuda.is_available()
    if asked == "fp16" and not gpu:
        raise UserError("train.precision is fp16, which needs a GPU; here bf16, no or auto will do")
    if asked != "auto":
        return asked
    if gpu:
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if probe() else "no"


def leave() -> None:
    """Part from the other processes, when all work is done."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` `(B, ...)` of all processes in rank order, without gradients; one process: `x` itself."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def first(x: Tensor) -> Tensor:
    """Return the first process's `x` `(...)` on all of them, without gradients."""
    return gather(x[None])[0]


def rank() -> int:
    """Return this process's rank, 0 when there is only one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def cores() -> int:
    """Return the processor cores that this process may use, shared fairly with the others on the machine."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _use_all_cores() -> None:
    # Launchers set OMP_NUM_THREADS to 1 when they see no GPU, which leaves the other cores idle.
    if not torch.cuda.is_available():
        torch.set_num_threads(cores())


def first_process() -> bool:
    """Whether this is the first of the launched processes, before they have joined."""
    return int(os.environ.get("RANK", "0")) == 0
