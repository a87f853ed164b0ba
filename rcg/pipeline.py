"""noise -> z -> latent -> image: loads a trained run, samples, and moves it to and from other places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rcg.config import AutoencoderConfig, GuidanceConfig, recall
from rcg.core import checkpoint
from rcg.core.contracts import Autoencoder, Space
from rcg.core.errors import UserError, nearest
from rcg.core.registry import AUTOENCODERS, GENERATORS, NETWORKS, Registry
from rcg.core.rng import Streams, fold
from rcg.diffusion.inpainting import inpaint
from rcg.diffusion.model import GenerativeModel, build
from rcg.diffusion.sdedit import second_pass
from rcg.distributed import launch as parallel
from rcg.encoding import autoencoder, clusters
from rcg.encoding.autoencoder import autoencoder_part, check_space, has_weights, open_autoencoder, restore_autoencoder

NEIGHBORS = ("rdm", "encoder", autoencoder.FOLDER)
"""The folders of a run, and the parts of a pipeline, that are not its generator."""


class Samples(NamedTuple):
    """What a pipeline drew: images `(B, 3, H, W)` in [0, 1], and what they were painted from."""

    indices: list[int]
    images: Tensor
    z: Tensor | None  # (B, D)
    labels: Tensor | None  # (B,)


class Rows(Protocol):
    """Representations to paint from, looked up by the indices of samples; a tensor `(N, D)` is one."""

    def __getitem__(self, indices: Any, /) -> Tensor:
        """Return `(B, D)` for B indices."""
        ...


class Pipeline:
    """A generator and, where its condition is a representation, the RDM that generates it.

    Args:
        generator: the checkpoint part of a pixel generator.
        rdm: the part of an RDM, needed when the generator is conditioned on a representation.
        encoder: the part of the encoder, kept for those who encode their own images.
        tokenizer: the part of the autoencoder, needed when it was trained here.

    Raises:
        UserError: the RDM generates other representations than the generator was trained on, or the autoencoder is not
            the one in whose space it was trained.
    """

    def __init__(
        self,
        generator: checkpoint.Part,
        rdm: checkpoint.Part | None = None,
        encoder: checkpoint.Part | None = None,
        tokenizer: checkpoint.Part | None = None,
    ) -> None:
        self.parts = {part.kind: part for part in (generator, rdm, encoder) if part is not None}
        self.generator = restore(generator, GENERATORS)
        self.rdm = None if rdm is None else restore(rdm, NETWORKS)
        config: Any = self.generator.config
        size = generator.facts["image_size"]
        self.autoencoder: Autoencoder = (
            open_autoencoder(config.autoencoder, size, None)
            if tokenizer is None
            else restore_autoencoder(tokenizer, size)
        )
        check_space(self.autoencoder, self.generator.data, "the generator")
        if has_weights(self.autoencoder):
            self.parts[autoencoder.FOLDER] = tokenizer or autoencoder_part(self.autoencoder, {"image_size": size})
        self.classes: list[str] = generator.facts["classes"]
        self.precision = "no"
        self.counts: list[int] | None = None  # images of each cluster
        if config.condition == "cluster":
            self.counts = generator.facts["clusters"]["counts"]
            self.classes = [f"cluster {number}" for number in range(len(self.counts))]
        if config.condition == "representation":
            self._check_condition()

    @classmethod
    def from_run(cls, folder: Path | str, generator: str | None = None) -> Pipeline:
        """Load a run's folder; `generator` names the sub-folder where there are several.

        Raises:
            UserError: a part is missing, or there are several generators and none is named.
        """
        folder = Path(folder)
        if not folder.is_dir():
            there = [str(p) for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
            raise UserError(f"there is no run {folder}; {nearest(str(folder), there)}")
        painted = _load(folder / cls._choose(folder, generator) / checkpoint.FILE)
        names = ["rdm", "encoder"]
        section = painted.config["autoencoder"]
        if issubclass(AUTOENCODERS.get(section["name"]).Config, AutoencoderConfig) and section["weights"] is None:
            names.append(autoencoder.FOLDER)  # another generator of the run may be the one that it was trained for
        found = {name: folder / name / checkpoint.FILE for name in names}
        return cls(painted, **{name: _load(path) for name, path in found.items() if path.is_file()})

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Pipeline:
        """Load what `save_pretrained` wrote, from a local folder or from the hub (`owner/name`)."""
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(str(name), revision)
        found = {kind: folder / f"{kind}.safetensors" for kind in ("generator", *NEIGHBORS)}
        if not found["generator"].is_file():
            raise UserError(f"{folder} holds no generator.safetensors: it was not written by save_pretrained")
        return cls(**{kind: _load(path) for kind, path in found.items() if path.is_file()})

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write every part and a model card into `folder`, and return it."""
        folder = Path(folder)
        for kind, part in self.parts.items():
            checkpoint.save(folder / f"{kind}.safetensors", part)
        with checkpoint.atomic(folder / "README.md") as temporary:
            temporary.write_text(self._card())
        return folder

    def push_to_hub(self, repository: str, private: bool = True) -> str:
        """Upload the parts and the model card to `owner/name` on the hub, and return the address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload rcg pipeline"))

    def to(self, device: torch.device | str, precision: str = "no") -> Pipeline:
        """Move all networks to `device`, to evaluate them in mixed precision: `no`, `bf16`, `fp16`, or `auto`.

        Raises:
            UserError: fp16 without a GPU.
        """
        self.precision = parallel.resolve_precision(precision)
        for module in (self.generator, self.rdm, self.autoencoder):
            if isinstance(module, nn.Module):
                module.to(device)
        return self

    def _cast(self) -> AbstractContextManager[Any]:
        """Return what lets networks multiply in the pipeline's precision."""
        half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, half, enabled=self.precision != "no")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    @torch.inference_mode()
    def sample(
        self,
        indices: Sequence[int],
        seed: int = 0,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        rdm_steps: int | None = None,
        label: int | None = None,
        labels: Literal["balanced", "random"] = "balanced",
        z: Tensor | None = None,
        t0: float | None = None,
    ) -> Samples:
        """Draw the samples with the given indices; sample i depends on (seed, i) alone, not on its batch.

        Args:
            indices: which samples, B of them.
            seed: which universe of samples.
            guidance: scale of the generator's guidance; none: as configured.
            steps: network evaluations of the generator; none: as configured.
            rdm_steps: network evaluations of the RDM; none: as configured.
            label: the class of all samples; none: one for each, as `labels` says.
            labels: sample i is of class i modulo their number, or of one drawn from (seed, i). Clusters come as often
                as among the training images, dealt out evenly, or drawn.
            z: representations `(B, D)` to paint from instead of generated ones.
            t0: share of the way back to noise from which samples are denoised a second time; none: one pass.

        Raises:
            UserError: a label is given but nothing here takes one, or it is out of range.
        """
        indices = list(indices)
        chosen = self._labels(indices, label, seed if labels == "random" else None)
        noise, scale = Streams(seed, indices, "generator", self.device), self._guidance(guidance)
        with self._cast():
            cond, z = self._condition(indices, seed, rdm_steps, chosen, z)
            latent = self.generator.sample(cond, noise, scale, steps)
            if t0 is not None:
                noise = Streams(seed, indices, "second pass", self.device)
                latent = second_pass(self.generator, latent, t0, cond, noise, scale, steps)
            images = self.autoencoder.decode(latent)
        return Samples(indices, images.float(), z, chosen)

    @torch.inference_mode()
    def inpaint(
        self,
        image: Tensor,
        hole: Tensor,
        seed: int = 0,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        rdm_steps: int | None = None,
        label: int | None = None,
        z: Tensor | None = None,
    ) -> Samples:
        """Paint the holes `(B, H, W)` (booleans) of images `(B, 3, H, W)` in [0, 1] with a generator of tokens.

        Row i depends on (seed, i) and its image alone; `z` `(B, D)` are the images' own representations, or others to
        paint from instead of generated ones. See `sample` for the rest.

        Raises:
            UserError: the generator is not one of tokens, or a class is asked for where there are none.
        """
        indices = list(range(len(image)))
        image, hole = image.to(self.device), hole.to(self.device)
        labels = self._labels(indices, label)
        noise, scale = Streams(seed, indices, "generator", self.device), self._guidance(guidance)
        with self._cast():
            cond, z = self._condition(indices, seed, rdm_steps, labels, z)
            painted = inpaint(self.generator, self.autoencoder, image, hole, cond, noise, scale, steps)
        return Samples(indices, painted.float(), z, labels)

    def batches(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int = 0,
        progress: bool = False,
        z: Rows | None = None,
        **how: Any,
    ) -> Iterator[Samples]:
        """Draw many samples batch by batch, with a progress bar if asked; see `sample` for the rest.

        Sample i is painted from row i of `z`, where that is given.
        """
        with tqdm(total=len(indices), desc="sampling", unit="image", disable=not progress) as bar:
            for start in range(0, len(indices), batch_size):
                chosen = list(indices[start : start + batch_size])
                drawn = self.sample(chosen, seed, z=None if z is None else z[chosen], **how)
                bar.update(len(drawn.indices))
                yield drawn

    def _condition(
        self, indices: list[int], seed: int, rdm_steps: int | None, labels: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what the generator is told of the samples, and their representations."""
        if self.generator.config.condition != "representation":
            return None if self.generator.config.condition == "none" else labels, z
        z = self._represent(indices, seed, rdm_steps, labels) if z is None else z.to(self.device)
        return z, z

    def _guidance(self, scale: float | None) -> GuidanceConfig:
        guidance: GuidanceConfig = self.generator.config.guidance
        return guidance if scale is None else guidance.model_copy(update={"scale": scale})

    def _represent(self, indices: list[int], seed: int, steps: int | None, labels: Tensor | None) -> Tensor:
        assert self.rdm is not None
        if self.rdm.cond is not None and self.rdm.cond.vocab is None:
            raise UserError(
                "the RDM is told a vector: draw with tools/sample_rdm.py CONFIG --vectors FILE, then "
                "tools/sample.py, or tools/evaluate.py, RUN --representations FILE"
            )
        cond = labels if self.rdm.cond is not None else None
        return self.rdm.sample(cond, Streams(seed, indices, "rdm", self.device), steps=steps).float()

    @property
    def takes_labels(self) -> bool:
        """Whether the generator, or the RDM, is told classes or clusters."""
        told = self.rdm is not None and self.rdm.cond is not None and self.rdm.cond.vocab is not None
        return told or self.generator.config.condition in ("class", "cluster")

    def _labels(self, indices: list[int], label: int | None, seed: int | None = None) -> Tensor | None:
        """Return the classes `(B,)` of samples: `label`, or drawn from `seed`, or one after another."""
        if not self.takes_labels:
            if label is not None:
                raise UserError("a class was asked for, but neither the generator nor the RDM was trained on classes")
            return None
        count = len(self.classes)
        if label is not None and not 0 <= label < count:
            raise UserError(f"class {label} is out of range: classes are 0 ({self.classes[0]}) to {count - 1}")
        if label is not None:
            drawn = [label] * len(indices)
        elif self.counts is not None:
            shares = [i * clusters.GOLDEN if seed is None else fold(seed, i, "label") / 2**63 for i in indices]
            drawn = [clusters.deal(self.counts, share % 1) for share in shares]
        else:
            drawn = [(i if seed is None else fold(seed, i, "label")) % count for i in indices]
        return torch.tensor(drawn, device=self.device)

    def _check_condition(self) -> None:
        space = self.generator.cond
        assert space is not None
        if self.rdm is None:
            raise UserError("the generator paints from representations, but there is no RDM: run tools/train_rdm.py")
        if self.rdm.data != space:
            raise UserError(
                f"the generator paints from representations of {space.id} {space.shape}, but the RDM generates those "
                f"of {self.rdm.data.id} {self.rdm.data.shape}: train one of them again on the other's encoder"
            )

    def _card(self) -> str:
        config = self.generator.config
        parts = ", ".join(f"{kind} ({part.config['name']})" for kind, part in self.parts.items())
        return (
            "---\nlibrary_name: rcg\n"
            "tags: [representation-conditioned-generation, unconditional-image-generation]\n---\n\n"
            f"# {config.name}, condition: {config.condition}\n\n"
            f"Images of {self.parts['generator'].facts['image_size']} px, generated without labels: noise -> "
            f"representation -> image (RCG, Li, Katabi, He, NeurIPS 2024).\n\n"
            f"    from rcg.pipeline import Pipeline\n"
            f'    images = Pipeline.from_pretrained("FOLDER or owner/name").sample(range(16), seed=0).images\n\n'
            f"Parts: {parts}.\n"
        )

    @staticmethod
    def _choose(folder: Path, name: str | None) -> str:
        known = [p.parent.name for p in sorted(folder.glob(f"*/{checkpoint.FILE}"))]
        known = [found for found in known if found not in NEIGHBORS]
        if name is not None and name not in known:
            raise UserError(f"{folder} holds no generator {name!r}; {nearest(name, known)}")
        if not known:
            raise UserError(f"{folder} holds no trained generator: run tools/train_pixel.py first")
        if name is None and len(known) > 1:
            raise UserError(f"{folder} holds several generators ({', '.join(known)}): choose one with --generator")
        return name or known[0]


def _load(path: Path) -> checkpoint.Part:
    return checkpoint.load(path)


def restore(part: checkpoint.Part, registry: Registry) -> GenerativeModel:
    """Rebuild a generative model, frozen, from its part and the registry that knows its network."""
    config = recall(registry, part.kind, part.config)
    data, cond = (part.facts[key] and Space.from_json(part.facts[key]) for key in ("data", "cond"))
    model = build(config, registry.get(config.name), data, cond)
    model.load_state_dict(part.tensors)
    return model.eval().requires_grad_(False)


def read_representations(path: Path, cond: Space | None, count: int) -> Tensor:
    """Return the z `(N, D)` of a file of tools/sample_rdm.py, at least `count`, that belong to a generator's `cond`.

    Raises:
        UserError: they are fewer, or of another space, or the generator is told none.
    """
    part = checkpoint.load(path)
    space = Space.from_json(part.facts["space"]) if "space" in part.facts else None
    if cond is None or space != cond:
        wanted = "nothing" if cond is None else f"{cond.id or 'labels'} {cond.shape}"
        raise UserError(f"{path} holds representations of {space and space.id}, but the generator is told {wanted}")
    z = part.tensors["z"]
    if len(z) < count:
        raise UserError(f"{path} holds {len(z)} representations: --num {count} is more than that")
    return z


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "README.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} is neither a local folder nor a repository on the hub that can be read ({reason})"
        ) from None
