"""The one store of computed tensors: safetensors shards on disk, filled by all processes.

The name of a store's folder and the header of each shard say which network saw which images. A killed run loses at most
the shards that its processes were writing; a damaged shard is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from rcg.core import checkpoint
from rcg.core.console import progress, warn
from rcg.core.errors import UserError

Computation = Callable[[range, Sequence[str], Callable[[int], Any]], Mapping[str, Mapping[str, Tensor]]]
"""`compute(positions, names, advance)`: the tensors of some items for the stores that lack them, by the stores' names.

`advance(n)` moves the progress bar by n.
"""


@dataclass(frozen=True)
class ShardedStore:
    """Named tensors of N items, kept in shards.

    Attributes:
        folder: where the shards are.
        facts: which network saw which items, JSON-serializable; the header of each shard.
        count: N.
        shard_size: items of one shard.
    """

    folder: Path
    facts: dict[str, Any]
    count: int
    shard_size: int

    @property
    def shards(self) -> list[range]:
        """The positions of the items of each shard."""
        starts = range(0, self.count, self.shard_size)
        return [range(start, min(start + self.shard_size, self.count)) for start in starts]

    @property
    def missing(self) -> list[range]:
        """The shards that are not written yet, or damaged."""
        return [positions for positions in self.shards if not self._is_whole(positions)]

    def _is_whole(self, positions: range) -> bool:
        """Whether a shard is there and can be read; that it is of something else is left for `read` to refuse."""
        path = self.path(positions)
        content = read_if_whole(path)
        if content is None:
            return False
        tensors, facts = content
        if facts == self.facts and any(tensor.shape[:1] != (len(positions),) for tensor in tensors.values()):
            warn(f"{path} does not hold {len(positions)} items: it is computed again")
            return False
        return True

    def path(self, positions: range) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{positions.start:09d}-{positions.stop:09d}.safetensors"

    def write(self, positions: range, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, atomically."""
        checkpoint.save_tensors(self.path(positions), tensors, self.facts)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Read a file of the folder, a shard for example.

        Raises:
            UserError: it is of other items or of another network.
        """
        tensors, facts = checkpoint.load_tensors(path, finite=False)
        if facts != self.facts:
            raise UserError(
                f"{path} holds tensors of other images or of another network ({facts}, not {self.facts}): "
                f"delete {self.folder}"
            )
        return tensors

    def tensors(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor called `name` of each shard, in order.

        Raises:
            UserError: a shard is missing, damaged, or of something else.
        """
        for positions in self.shards:
            path = self.path(positions)
            tensors = self.read(path)
            if name not in tensors:
                raise UserError(f"{path} holds {', '.join(tensors) or 'nothing'} and no {name!r}: delete {self.folder}")
            yield tensors[name]


def read_if_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a file of tensors, and what they are; None where it is not there or damaged, and is computed again."""
    if not path.is_file():
        return None
    try:
        return checkpoint.load_tensors(path, finite=False)
    except UserError as error:
        warn(f"{error}: it is computed again")
        return None


def fill(
    stores: Mapping[str, ShardedStore], compute: Computation, accelerator: Accelerator, what: str, rows: int = 1
) -> None:
    """Write the missing shards of stores of the same items; an item is looked at once for all stores that lack it.

    Args:
        stores: by names of the caller's choice, equally many items in shards of equal size.
        compute: computes the tensors of a shard.
        accelerator: the processes that share the work.
        what: a few words for the progress bar and messages.
        rows: how many rows one item counts for in the progress bar.

    Raises:
        UserError: the network gives values that are not finite.
        OSError: a folder cannot be written; this is found out before the work.
    """
    work: dict[range, list[str]] = {}
    for name, store in stores.items():
        missing = store.missing
        for positions in missing:
            work.setdefault(positions, []).append(name)
        if missing:
            store.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=store.folder):
                pass
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    mine = sorted(work, key=lambda positions: positions.start)[accelerator.process_index :: accelerator.num_processes]
    total = rows * sum(len(positions) for positions in mine)
    with progress(total=total, desc=what, unit="image", shown=accelerator.is_main_process and total > 0) as bar:
        for positions in mine:
            for name, tensors in compute(positions, work[positions], bar.update).items():
                _check_finite(tensors, positions, what)
                stores[name].write(positions, tensors)
    accelerator.wait_for_everyone()


def _check_finite(tensors: Mapping[str, Tensor], positions: range, what: str) -> None:
    for name, tensor in tensors.items():
        is_finite = tensor.isfinite().reshape(len(positions), -1).all(dim=1)
        if not is_finite.all():
            first = positions[int(is_finite.int().argmin())]
            raise UserError(
                f"{what}: the network gives values ({name}) of image {first} that are not finite: its weights are "
                f"damaged, or too large for their precision"
            )
