"""Weight files of other programs: read without executing pickled code, checked against a module, loaded into it."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.core.console import say
from rcg.core.errors import UserError, nearest_file
from rcg.core.first_bytes import AGAIN, WeightFormat, weight_format

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin")
"""How the names of weight files end."""
AVERAGES = (
    "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "teacher", "target_encoder"
)  # fmt: skip
"""Keys of training checkpoints under which moving averages lie, which their authors evaluate."""
WRAPPERS = (*AVERAGES, "state_dict", "model_state_dict", "model", "net", "network", "module", "params", "encoder")
"""Keys of training checkpoints under which weights lie; the first that is there counts."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names."""
_LISTED = 3
"""Most tensor names that a complaint lists."""


class _Inert:
    """Stands for any object of a class that PyTorch does not allow: whatever is done to it does nothing."""

    def __new__(cls, *arguments: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """The same for dictionaries with special habits: an ordinary one."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


def read(path: Path | str) -> dict[str, Any]:
    """Read a safetensors or a PyTorch file without running any code that it holds.

    Tensors, containers and `argparse.Namespace` come as they are. Objects of other classes, which training scripts save
    beside the weights, become inert: their classes are neither imported nor called.

    Raises:
        UserError: the file is missing, truncated, or not a weight file; the sentence says what it is.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise UserError(f"there is no weight file {path}; {nearest_file(path, *ENDINGS)}")
    written_as = weight_format(path)
    try:
        content = load_file(path) if written_as == WeightFormat.SAFETENSORS else _unpickle(path, written_as)
    except pickle.UnpicklingError:
        foreign = _first(sorted(_foreign_classes(path, written_as))) or "an unknown protocol"
        raise UserError(
            f"{path} cannot be read without running code that it names ({foreign}), and pickled code is never loaded: "
            f"where you trust it, save its tensors alone, torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # a damaged pickle may fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is truncated or damaged ({reason}): {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary of tensors, not {type(content).__name__}")
    return content


def state_dict(content: Mapping[str, Any], path: Path | str) -> dict[str, Tensor]:
    """Return the weights in what `read` returned of `path`: unwrapped, under names without `PREFIXES`.

    Raises:
        UserError: there are none; the message lists what there is.
    """
    outermost = content
    found = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    seen = {id(content)}
    while found and id(content[found[0]]) not in seen:  # a file may hold a dictionary that holds itself
        if found[0] in AVERAGES and len(found) > 1:
            say(f"{path}: takes the weights under {found[0]!r}, not those under {found[1]!r}")
        content = content[found[0]]
        seen.add(id(content))
        found = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    tensors = {_bare(str(key)): value for key, value in content.items() if _is_weight(value)}
    if not tensors:
        names = ", ".join(repr(str(key)) for key in list(outermost)[:8]) or "nothing"
        raise UserError(f"{path} holds no weights, plain or under {', '.join(WRAPPERS)}: it holds {names}")
    return tensors


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the weights of a file; see `read` and `state_dict`."""
    return state_dict(read(path), path)


def fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Load `tensors`, which come from `path`, into `module`: all of them and nothing else.

    Raises:
        UserError: names are missing or unexpected, shapes or kinds of numbers differ, or values are not finite; the
            message lists them.
    """
    expected = module.state_dict()
    complaints = misfits(expected, tensors)
    if complaints:
        architecture = guess_architecture(tensors)
        likeness = f"; it looks like {architecture}" if architecture else ""
        raise UserError(f"{path} does not fit {type(module).__name__}: {complaints}{likeness}")
    check_finite(tensors, path)
    module.load_state_dict({**{key: expected[key] for key in expected if _is_counter(key)}, **tensors})


def misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], exact: bool = False) -> str:
    """Return in what tensors differ from a module's state by name, shape and kind of numbers; empty if they fit.

    Args:
        expected: the module's state; without memory is enough.
        tensors: those of a file.
        exact: whether the types of numbers must be the same, and none may be left out; else floats of any precision
            serve for each other, and counters of batch normalization may be missing.
    """
    missing = [key for key in expected if key not in tensors and (exact or not _is_counter(key))]
    unexpected = [key for key in tensors if key not in expected]
    shared = [key for key in expected if key in tensors]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in shared
        if tensors[key].shape != expected[key].shape
    ]
    types = [
        f"{key} is of {tensors[key].dtype} instead of {expected[key].dtype}"
        for key in shared
        if tensors[key].dtype != expected[key].dtype
        and (exact or tensors[key].is_floating_point() != expected[key].is_floating_point())
    ]
    groups = {"lacks": missing, "has also": unexpected, "differs:": shapes or types}
    return "; ".join(f"it {verb} {_first(names)}" for verb, names in groups.items() if names)


def check_finite(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise `UserError` if a tensor, which comes from `path`, holds values that are infinite or no numbers."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds values that are infinite or no numbers (NaN): the file is of no use")


def guess_architecture(tensors: Mapping[str, Tensor]) -> str:
    """Name the architecture that a state dict looks like: a ViT, a BEiT or a ResNet; empty if it is none of these."""
    patches = _find(tensors, r"patch_embed\.proj\.weight$")
    if patches is not None and patches.ndim == 4:
        blocks = _numbers(tensors, r"(?:^|\.)blocks\.(\d+)\.")
        width, _, _, patch = patches.shape
        kind = "a BEiT" if _find(tensors, r"relative_position_bias_table$") is not None else "a ViT"
        return f"{kind} of width {width} with {len(blocks)} blocks and patches of {patch} px"

    stem = _find(tensors, r"(?:^|\.)conv1\.weight$")
    counts = tuple(len(_numbers(tensors, rf"(?:^|\.)layer{stage}\.(\d+)\.")) for stage in range(1, 5))
    if stem is not None and all(counts):
        bottleneck = _find(tensors, r"layer1\.0\.conv3\.weight$") is not None
        depths = {(3, 4, 6, 3): "50" if bottleneck else "34", (2, 2, 2, 2): "18", (3, 4, 23, 3): "101"}
        name = f"a ResNet-{depths[counts]}" if counts in depths else f"a ResNet of {counts} blocks"
        return f"{name} of width {stem.shape[0]}"
    return ""


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _first(names: Sequence[str]) -> str:
    """List the first few names, and count the rest."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    """Return the first tensor whose name matches."""
    return next((value for key, value in tensors.items() if re.search(pattern, key)), None)


def _numbers(tensors: Mapping[str, Tensor], pattern: str) -> set[str]:
    """Return the numbers that the pattern's group matches in the names."""
    return {match[1] for key in tensors if (match := re.search(pattern, key))}


def _bare(name: str) -> str:
    """Return the name that a tensor has in its network."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _unpickle(path: Path, written_as: WeightFormat) -> Any:
    """Read a PyTorch file with PyTorch's restricted unpickler, and `_Inert` in place of classes that it refuses."""
    names = _foreign_classes(path, written_as)
    inert = [(_InertDict if name.endswith(("dict", "Dict")) else _Inert, name) for name in names]
    with torch.serialization.safe_globals([argparse.Namespace, *inert]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with path.open("rb") as file:  # of a path, torch.load would look at the ending
            content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, _Inert):
        raise pickle.UnpicklingError("the file holds one object, a whole network perhaps")
    return content


def _foreign_classes(path: Path, written_as: WeightFormat) -> set[str]:
    """Return the names of what the pickles of a PyTorch file would import, but for the usual containers."""
    if written_as == WeightFormat.ZIP:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if Path(name).name == "data.pkl")
            with archive.open(name) as file:
                names = set(_globals(file, pickles=1))
    else:
        with path.open("rb") as file:
            names = set(_globals(file, pickles=4))  # a magic number, the version, the machine, and the object
    known = {"argparse.Namespace", "collections.OrderedDict", "collections.Counter"}
    return {name for name in names - known if not name.startswith(("torch._utils.", "torch.storage."))}


def _globals(file: Any, pickles: int) -> Iterator[str]:
    """Yield `module.name` of whatever the first pickles in a file name; nothing of it is imported."""
    with contextlib.suppress(ValueError):  # the file ends before that, or is damaged
        for _ in range(pickles):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    # Pickles of PyTorch name what Python 2 had by its names there.
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    yield f"{module}.{name}"
