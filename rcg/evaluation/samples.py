"""The images of an evaluation: samples of a pipeline, a data set, a folder or an .npz batch; all of them as bytes.

Generated images are rounded to 8 bits before any network sees them, so that streaming them and reading them back from
PNG files give the same scores.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from rcg.config import ORIGIN, Config, GuidanceConfig, SamplerConfig, dump_without
from rcg.core import checkpoint
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import DATASETS
from rcg.data.images import Images
from rcg.data.loading import batches
from rcg.data.pictures import Opened
from rcg.encoding.run_folder import RunFolder
from rcg.encoding.vectors import read_representations
from rcg.evaluation.npz import NpzImages
from rcg.pipeline import Pipeline, Samples, SamplingOptions
from rcg.visual.grids import is_drawing, to_uint8

READ_BATCH = 64
"""Stored images that are read at a time."""
LISTED = 3
"""Most files that a message lists."""


def key(facts: Any) -> str:
    """Return 12 hexadecimal digits that stand for JSON-serializable facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class ImageBatch(NamedTuple):
    """Some images of a source."""

    indices: list[int]
    images: Tensor
    """Bytes `(B, 3, H, W)`."""
    z: Tensor | None = None
    """The representations that they were conditioned on, or generated with, `(B, D)`, if they were."""


class RepresentationSource(Protocol):
    """Representations that samples are conditioned on instead of those that the RDM generates.

    Attributes:
        facts: everything that decides them, JSON-serializable; `of` says what they represent.
    """

    facts: dict[str, Any]

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        ...


class FileRepresentations:
    """Representations from a file of tools/sample_rdm.py, row i for sample i."""

    def __init__(self, path: Path, cond: Space | None, count: int) -> None:
        """Read at least `count` representations of the space `cond`.

        Raises:
            UserError: they are fewer, or of another space.
        """
        self.z = read_representations(path, cond, count)
        self.facts = {"of": "a file", "digest": checkpoint.digest({"z": self.z})}

    def __getitem__(self, indices: list[int], /) -> Tensor:
        """Return the representations `(B, D)` for the samples with these indices."""
        return self.z[indices]


@dataclass(frozen=True)
class SamplingPlan:
    """How the samples of a run are generated.

    Attributes:
        count: number of samples.
        options: of sampling.
        batch_size: images generated at a time.
        precision: mixed precision of the networks; `no`: without.
        weak: a worse generator to guide away from, as `Pipeline.from_pretrained` takes it; None: without.
    """

    count: int
    options: SamplingOptions
    batch_size: int = 64
    precision: str = "no"
    weak: str | None = None


@dataclass(frozen=True)
class GeneratedImages:
    """Samples of a pipeline: sample i depends on (seed, i) alone.

    Attributes:
        pipeline: generates them.
        count: number of samples.
        options: how they are generated.
        batch_size: images generated at a time.
        representations: what they are conditioned on; None: on what the pipeline generates.
    """

    pipeline: Pipeline
    count: int
    options: SamplingOptions
    batch_size: int = 64
    representations: RepresentationSource | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    @property
    def size(self) -> int:
        """The images' side in pixels."""
        return self.pipeline.image_size

    @property
    def have_z(self) -> bool:
        """Whether they come with representations, as the generator's condition or generated together with them."""
        return self.pipeline.taken is not None

    @property
    def sampler(self) -> SamplerConfig:
        """The generator's sampler."""
        return self.pipeline.config.sampler.with_steps(self.options.steps)

    @property
    def guidance(self) -> GuidanceConfig | None:
        """The generator's guidance; None if there is nothing to guide away from."""
        return self.pipeline.config.guidance.with_scale(self.options.guidance) if self.pipeline.can_guide else None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The digests of the weights, and how they are used."""
        config, options = self.pipeline.config, self.options
        facts: dict[str, Any] = {
            "network": config.name,
            "condition": config.condition,
            "labels": self._labels(),
            "seed": options.seed,
            "sampler": self.sampler.model_dump(mode="json"),
            "guidance": self.guidance and self.guidance.model_dump(mode="json"),
        }
        if options.sdedit_strength is not None:
            facts["sdedit_strength"] = options.sdedit_strength
        if self.representations is not None:
            facts["representations"] = self.representations.facts
        elif self.pipeline.rdm is not None and config.condition == "representation":
            sampler = self.pipeline.rdm.config.sampler.with_steps(options.rdm_steps)
            facts["rdm_sampler"] = sampler.model_dump(mode="json")
        if self.pipeline.precision != "no":
            facts["precision"] = self.pipeline.precision
        return facts | {"weights": self._weights(with_rdm="rdm_sampler" in facts)}

    def _labels(self) -> str:
        if not self.pipeline.takes_labels(generates_z=self.representations is None):
            return "none"
        label = self.options.label
        assignment = self.options.labels if label is None else f"all {label}"
        if self.pipeline.labels.counts:
            return f"{assignment}, clusters as often as among training images"
        return assignment

    def _weights(self, with_rdm: bool) -> dict[str, str]:
        """Name the weights of each part in use, and all of its configuration that sampling reads."""
        configs: dict[str, Config] = {
            "generator": self.pipeline.config,
            "autoencoder": self.pipeline.autoencoder.config,
        }
        if with_rdm and self.pipeline.rdm is not None:
            configs["rdm"] = self.pipeline.rdm.config
        if self.pipeline.generator.weak is not None and self.guidance is not None and self.guidance.scale != 1:
            configs["weak"] = self.pipeline.generator.weak.config
        return {
            kind: f"{checkpoint.digest(part.tensors)}-{key(dump_without(configs[kind], ORIGIN))}"
            for kind, part in self.pipeline.parts.items()
            if kind in configs
        }

    def generate(self, positions: Sequence[int], progress: bool = False) -> Iterator[Samples]:
        """Generate the samples at `positions`, not yet rounded, with a progress bar if asked."""
        z = self.representations
        return self.pipeline.batches(positions, self.batch_size, self.options, z=z, progress=progress)

    def batches(self, positions: Sequence[int]) -> Iterator[ImageBatch]:
        """Generate the samples at `positions`."""
        for samples in self.generate(positions):
            yield ImageBatch(samples.indices, to_uint8(samples.images), samples.z)


def open_samples(
    run: RunFolder, generator: str | None, plan: SamplingPlan, representations: Path | None, device: torch.device
) -> GeneratedImages:
    """Return the samples of a run, or of a saved pipeline.

    Args:
        run: the folder.
        generator: name of the generator's folder in a run that has several.
        plan: how they are generated.
        representations: file of tools/sample_rdm.py to condition on; None: the RDM generates representations.
        device: of the networks.

    Raises:
        UserError: a part is missing or does not fit.
    """
    pipeline = Pipeline.from_pretrained(run.path, generator, weak=plan.weak).to(device, plan.precision)
    if plan.weak is not None and pipeline.config.guidance.with_scale(plan.options.guidance).scale == 1:
        raise UserError("--weak was given, but a guidance of 1 does not use it: choose another with --guidance")
    pipeline.check(plan.options, generates_z=representations is None)
    rows = None
    if representations is not None:
        rows = FileRepresentations(representations, pipeline.taken or pipeline.generator.cond, plan.count)
    return GeneratedImages(pipeline, plan.count, plan.options, plan.batch_size, rows)


@dataclass(frozen=True)
class StoredImages:
    """Images that exist already.

    Attributes:
        images: gives `{"image": (3, H, W) in [0, 1]}` by position, and knows its `fingerprint`.
        origin: a few words for the report.
        size: their side in pixels.
        resize: how they were brought to it.
        doubts: sentences about what is doubtful in them.
    """

    images: Images | NpzImages
    origin: str
    size: int
    resize: str
    doubts: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def facts(self) -> dict[str, Any]:
        """The content by its fingerprint."""
        content = self.images.fingerprint
        return {"images": self.origin, "fingerprint": content, "size": self.size, "resize": self.resize}

    def batches(self, positions: Sequence[int]) -> Iterator[ImageBatch]:
        """Read the images at `positions`."""
        start = 0
        for batch in batches(self.images, positions, READ_BATCH):
            image = to_uint8(batch["image"])
            yield ImageBatch(list(positions[start : start + len(image)]), image)
            start += len(image)


ImageSource = GeneratedImages | StoredImages
"""Images in a fixed order.

Both have a length, `size`, the images' side in pixels, `facts`, everything that decides the images but their number,
JSON-serializable, and `batches(positions)`, which yields the images at `positions` in their order.
"""


def dataset_images(images: Images, split: str) -> StoredImages:
    """Serve the first views of a data set's training or validation images."""
    config = images.config
    resize = f"short side to {config.image_size} px, bicubic, antialiased, {config.crop} crop"
    return StoredImages(images, f"{split} images of {config.name}", config.image_size, resize)


def folder_images(root: Path, size: int | None) -> StoredImages:
    """Serve the pictures below a folder, cropped to `size` px, or to their own short side.

    Galleries and drawings that this program wrote are left out.

    Raises:
        UserError: there are no pictures, or one of them cannot be read, or they differ in size and no `size` is given.
    """
    folder = DATASETS.get("image_folder")
    config = folder.Config(root=root)
    source = folder(config, whole=True)
    with ThreadPool() as pool:
        sizes = pool.map(lambda index: _size(source.open(index)), range(len(source)), chunksize=64)
    found = dict(zip(source.paths, sizes, strict=True))
    drawings = [path for path in source.paths if found[path] is None]
    kept = [position for position, path in enumerate(source.paths) if found[path] is not None]
    sides = {path: size for path, size in found.items() if size is not None}
    if not sides:
        raise UserError(f"{root} holds no pictures but drawings that this program wrote")
    if size is None:
        _check_sizes(root, sides)
    side = size or next(iter(sides.values()))[0]
    doubts = []
    if drawings:
        doubts.append(f"left out {_some(drawings)} in {root}: drawn by this program, no images")
    small = [path for path, (short, _) in sides.items() if short < side]
    if small:
        doubts.append(
            f"{root}: {len(small)} of {len(kept)} pictures are smaller than {side} px, and enlarged: {_some(small)}"
        )
    config = config.model_copy(update={"image_size": side})
    resize = f"short side to {side} px where it was another, bicubic, antialiased, center crop"
    return StoredImages(Images(source, kept, config), str(root), side, resize, tuple(doubts))


def _size(opened: Opened) -> tuple[int, int] | None:
    """Return short and long side of a picture, None for a drawing of this program."""
    with Image.open(opened) as picture:
        return None if is_drawing(picture) else (min(picture.size), max(picture.size))


def _check_sizes(root: Path, sides: Mapping[str, tuple[int, int]]) -> None:
    """Raise `UserError` if pictures differ in their sizes, which name short and long side."""
    (usual, count), *others = Counter(sides.values()).most_common()
    if others:
        odd = [path for path, found in sides.items() if found != usual]
        raise UserError(
            f"{root} holds pictures of {1 + len(others)} sizes: {count} of {usual[0]} x {usual[1]} px, and {len(odd)} "
            f"of others ({_some(odd)}): remove what is no sample, or choose a side with --size"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def npz_images(path: Path) -> StoredImages:
    """Serve the images of an .npz file in the layout of guided-diffusion; raises `UserError` as `NpzImages` does."""
    images = NpzImages(path)
    return StoredImages(images, str(path), images.shape[1], "none")
