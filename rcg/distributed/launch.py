"""Where a program runs: how many processes, which device, which precision, how many threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rcg.config import TrainConfig
from rcg.core.errors import UserError, nearest
from rcg.distributed import fsdp


def launch(config: TrainConfig | None = None, folder: Path | None = None, shardable: bool = False) -> Accelerator:
    """Join the processes that the launcher started, with the precision and trackers of `config`.

    Only tools call this: the library works with the accelerator that it is given.

    Args:
        config: of the training; None: nothing is trained, and the precision stays that of a training before or after.
        folder: where trackers write.
        shardable: whether the module that is trained can be sharded (FSDP).

    Raises:
        UserError: the precision, the tracker or the sharding asked for does not exist here.
    """
    if not torch.cuda.is_available():
        # Launchers set OMP_NUM_THREADS to 1 when they see no GPU, which leaves the other cores idle.
        torch.set_num_threads(cores())
    if config is None:
        return Accelerator(mixed_precision=None if is_initialized() else "no")
    # Each micro-batch is one global batch's share, so the loop, not the end of a loader, ends an accumulation.
    plugin = GradientAccumulationPlugin(num_steps=config.grad_accum_steps, sync_with_dataloader=False)
    tracker = None if config.tracker == "none" else config.tracker
    if tracker is not None:
        _check_tracker(tracker)
    precision = resolve_precision(config.precision, "train.precision=")
    shards = fsdp.plugin(config, precision, shardable) if fsdp.is_requested() else None
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=plugin,
        fsdp_plugin=shards,
        log_with=tracker,
        project_dir=folder,
    )
    if shards and accelerator.distributed_type == DistributedType.MULTI_CPU:
        fsdp.shard_on_cpus(accelerator, shards)
    return accelerator


def _check_tracker(name: str) -> None:
    if name not in LOGGER_TYPE_TO_CLASS:
        known = nearest(name, [*LOGGER_TYPE_TO_CLASS, "none"])
        raise UserError(f"train.tracker is {name!r}, which accelerate does not know; {known}")
    if name not in map(str, get_available_trackers()):
        raise UserError(
            f"train.tracker is {name}, which is not installed: pip install {name}, or choose tensorboard or none"
        )


def resolve_precision(precision: str, asked: str = "precision ") -> str:
    """Turn `auto` into bf16 where the device multiplies it natively, else no; `asked` is how it was asked for.

    Raises:
        UserError: fp16 without a GPU.
    """
    gpu = torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise UserError(f"{asked}{precision} needs a GPU, and there is none: bf16, no or auto will do")
    if precision != "auto":
        return precision
    on_cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # private, and may go
    multiplies_bf16 = torch.cuda.is_bf16_supported() if gpu else on_cpu()
    return "bf16" if multiplies_bf16 else "no"


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


def rank() -> int:
    """Return this process's rank, 0 when there is only one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def unwrapped(module: nn.Module) -> Any:
    """Return a module without the wrapper that averages its gradients over processes."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def cores() -> int:
    """Return the processor cores that this process may use, shared fairly with the others on the machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
