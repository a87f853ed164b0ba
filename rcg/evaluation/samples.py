"""Where the images of an evaluation come from: a pipeline, a data set, a folder, an .npz batch; all of them as bytes.

Generated images are rounded to 8 bits before anything looks at them, so that streaming them and reading them back from
PNG files give the same figures.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.images import Images
from rcg.distributed.launch import cores
from rcg.pipeline import Pipeline, read_representations
from rcg.visual.grids import to_uint8


def key(facts: Any) -> str:
    """Return 12 hexadecimal digits that stand for JSON-serializable facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Batch(NamedTuple):
    """Some images of a source."""

    indices: list[int]
    images: Tensor
    """Bytes `(B, 3, H, W)`."""
    z: Tensor | None = None
    """The representations that they were painted from `(B, D)`, where they were."""


class Source(Protocol):
    """Images in a fixed order.

    Attributes:
        facts: everything that decides the images but their number, JSON-serializable.
        size: their side in pixels.
    """

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that decides the images but their number, JSON-serializable."""
        ...

    @property
    def size(self) -> int:
        """The images' side in pixels."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(self, positions: Sequence[int]) -> Iterator[Batch]:
        """Yield the images at `positions`, in their order."""
        ...


class Told(Protocol):
    """Representations that samples are painted from instead of generated ones.

    Attributes:
        facts: everything that decides them, JSON-serializable.
    """

    facts: dict[str, Any]

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        ...


class Given:
    """Representations from a file of tools/sample_rdm.py, row i for sample i."""

    def __init__(self, path: Path, cond: Space | None, count: int) -> None:
        """Read at least `count` representations of the space `cond`.

        Raises:
            UserError: they are fewer, or others.
        """
        self.z = read_representations(path, cond, count)
        self.facts = {"representations of": "a file", "digest": checkpoint.digest({"z": self.z})}

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        return self.z[indices]


@dataclass(frozen=True)
class Generated:
    """Samples of a pipeline: sample i depends on (seed, i) alone.

    Attributes:
        pipeline: what paints them.
        count: how many there are.
        seed: which universe of samples.
        how: `guidance`, `steps`, `rdm_steps`, `label`, `labels` and `t0` of `Pipeline.sample`.
        batch_size: images drawn at a time.
        told: what they are painted from instead of generated representations, where it is something else.
    """

    pipeline: Pipeline
    count: int
    seed: int
    how: dict[str, Any]
    batch_size: int = 64
    told: Told | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    @property
    def size(self) -> int:
        """The images' side in pixels."""
        return int(self.pipeline.parts["generator"].facts["image_size"])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The weights by their digests, and how they are used."""
        generator: Any = self.pipeline.generator.config
        guidance = generator.guidance
        if self.how.get("guidance") is not None:
            guidance = guidance.model_copy(update={"scale": self.how["guidance"]})
        facts: dict[str, Any] = {
            "network": generator.name,
            "condition": generator.condition,
            "labels": self._labels(),
            "seed": self.seed,
            "sampler": generator.sampler.model_dump(mode="json") | _given(steps=self.how.get("steps")),
            # Without a condition there is nothing to be guided towards.
            "guidance": None if generator.condition == "none" else guidance.model_dump(mode="json"),
            **_given(t0=self.how.get("t0"), told=None if self.told is None else self.told.facts),
        }
        if self.pipeline.rdm is not None and generator.condition == "representation" and self.told is None:
            rdm = self.pipeline.rdm.config.sampler.model_dump(mode="json")
            facts["rdm_sampler"] = rdm | _given(steps=self.how.get("rdm_steps"))
        if self.pipeline.precision != "no":
            facts["precision"] = self.pipeline.precision
        unused = {"encoder"} | ({"rdm"} if "rdm_sampler" not in facts else set())
        used = {kind: _digest(part) for kind, part in self.pipeline.parts.items() if kind not in unused}
        return facts | {"weights": used}

    def _labels(self) -> str:
        if self.pipeline.takes_labels:
            label = self.how.get("label")
            dealt = str(self.how.get("labels") or "balanced") if label is None else f"all {label}"
            return dealt if self.pipeline.counts is None else f"{dealt}, clusters as often as among training images"
        return "none"

    def batches(self, positions: Sequence[int]) -> Iterator[Batch]:
        """Draw the samples at `positions`."""
        for drawn in self.pipeline.batches(positions, self.batch_size, self.seed, z=self.told, **self.how):
            yield Batch(drawn.indices, to_uint8(drawn.images), drawn.z)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _digest(part: checkpoint.Part) -> str:
    """Name the weights of a part and all of its configuration that sampling reads."""
    config = {name: value for name, value in part.config.items() if name != "train"}
    return f"{checkpoint.digest(part.tensors)}-{key(config)}"


@dataclass(frozen=True)
class Stored:
    """Images that exist already.

    Attributes:
        images: gives `{"image": (3, H, W) in [0, 1]}` by position, and knows its `fingerprint`.
        origin: what they are, for the report.
        size: their side in pixels.
        resize: how they were brought to it.
    """

    images: Any
    origin: str
    size: int
    resize: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def facts(self) -> dict[str, Any]:
        """The content by its fingerprint."""
        content = self.images.fingerprint
        return {"images": self.origin, "fingerprint": content, "size": self.size, "resize": self.resize}

    def batches(self, positions: Sequence[int]) -> Iterator[Batch]:
        """Read the images at `positions`."""
        workers = 0 if self.images.in_memory else min(8, cores())
        loader: DataLoader[Any] = DataLoader(self.images, batch_size=64, sampler=positions, num_workers=workers)
        start = 0
        for batch in loader:
            image = to_uint8(batch["image"])
            yield Batch(list(positions[start : start + len(image)]), image)
            start += len(image)


def of_data(images: Images, part: str) -> Stored:
    """Serve the first views of a data set's training or held-out images."""
    config = images.config
    resize = f"short side to {config.image_size} px, bicubic, antialiased, {config.crop} crop"
    return Stored(images, f"{part} images of {config.name}", config.image_size, resize)


def of_folder(root: Path, size: int | None) -> Stored:
    """Serve the pictures below a folder, cut to `size` px, or to the first one's short side.

    Raises:
        UserError: there are no pictures, or one of them cannot be read.
    """
    folder = DATASETS.get("image_folder")
    config = folder.Config(root=root)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        try:
            source = folder(config)
        except UserWarning as warning:
            raise UserError(f"{warning}; an evaluation counts every picture: mend or delete it") from None
    side = size or min(source.load(0).shape[1:])
    config = config.model_copy(update={"image_size": side})
    resize = f"short side to {side} px where it was another, bicubic, antialiased, center crop"
    return Stored(Images(source, range(len(source)), config), str(root), side, resize)


def of_batch(path: Path) -> Stored:
    """Serve the images of an .npz file in the layout of guided-diffusion.

    Raises:
        UserError: the file is none, or its `arr_0` is not `(N, H, W, 3)` uint8.
    """
    images = NpzImages(path)
    return Stored(images, str(path), images.shape[1], "none")


class NpzImages(Dataset[dict[str, Tensor]]):
    """The images `arr_0`, uint8 `(N, H, W, 3)`, of an .npz file, read one after another without unpacking the rest."""

    in_memory = True  # one reader goes through the file; several would each unpack it from the start

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        *_, channels = self.shape if len(self.shape) == 4 else (0,)
        if channels != 3 or self._dtype != np.uint8:
            raise UserError(f"{path}: arr_0 must be (N, H, W, 3) uint8, not {tuple(self.shape)} {self._dtype}")

    def _open(self) -> None:
        try:
            archive = zipfile.ZipFile(self.path)
            self.fingerprint = f"{archive.getinfo('arr_0.npy').CRC:08x}"
            self._file = archive.open("arr_0.npy")
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, by_columns, self._dtype = read(self._file)
        except KeyError:
            raise UserError(f"{self.path} holds no arr_0: a batch of images is expected") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is not an .npz file that can be read ({error})") from None
        if by_columns:
            raise UserError(f"{self.path}: arr_0 is stored by columns (Fortran order), but images are expected by rows")
        self._start = self._file.tell()

    def __len__(self) -> int:
        """Return N."""
        return int(self.shape[0])

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the image `(3, H, W)` in [0, 1] at `position`.

        Raises:
            UserError: the file ends before it.
        """
        size = int(np.prod(self.shape[1:]))
        self._file.seek(self._start + position * size)
        found = self._file.read(size)
        if len(found) < size:
            raise UserError(f"{self.path} is truncated: image {position} of {len(self)} is not all there")
        image = torch.frombuffer(bytearray(found), dtype=torch.uint8).view(self.shape[1:])
        return {"image": image.permute(2, 0, 1) / 255}


def arrays(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        UserError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file that can be read ({error})") from None
