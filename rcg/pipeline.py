"""noise -> z -> latent -> image: loads a run, a saved folder or a repository on the hub, and samples from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args, overload

import torch
from PIL.Image import Image
from torch import Tensor

from rcg.config import GeneratorConfig, GuidanceConfig, SamplerConfig, TrainableAutoencoderConfig, parse_saved_config
from rcg.core import checkpoint, console
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Noise, Process, Space
from rcg.core.errors import UserError
from rcg.core.hub import HubOptions, locate, upload
from rcg.core.registry import GENERATORS, NETWORKS, SAMPLERS
from rcg.core.rng import FixedFirstDraw, SampleNoise
from rcg.diffusion.inpainting import inpaint
from rcg.diffusion.model import GenerativeModel, restore
from rcg.diffusion.repaint import Resampling
from rcg.diffusion.sdedit import sdedit
from rcg.distributed.launch import resolve_precision
from rcg.encoding.autoencoder import autoencoder_part, check_space, open_autoencoder, restore_autoencoder
from rcg.encoding.encoder import restore_encoder
from rcg.encoding.labels import Assignment, LabelSet
from rcg.encoding.representation import Representation, standardizes
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.encoding.transform import Transform, restore_transform
from rcg.encoding.workspace import representation_parts
from rcg.visual.documents import read_json, render
from rcg.visual.grids import to_pil

SAVED = {kind: kind for kind in ("generator", "rdm", "encoder", "transform", "autoencoder")} | {"weak": "generator"}
"""The parts that `save_pretrained` writes, one file each, and their kinds."""


class Samples(NamedTuple):
    """Generated images `(B, 3, H, W)` in [0, 1], and their conditions."""

    indices: list[int]
    images: Tensor
    z: Tensor | None  # (B, D); generated together with the image by a generator that does so
    labels: Tensor | None  # (B,)


class Generated(NamedTuple):
    """Images `(B, 3, H, W)` and, from a generator of both, their representations `(B, D)`."""

    images: Tensor
    z: Tensor | None = None


class Code(NamedTuple):
    """What an image is made of.

    Attributes:
        z: what it means, `(B, d)`.
        noise: what z does not say: the x_T `(B, *S)` from which a sampler without fresh noise leads to the image; None:
            drawn from a seed.
    """

    z: Tensor
    noise: Tensor | None = None


class Rows(Protocol):
    """Representations to condition on, looked up by the indices of samples; a tensor `(N, D)` is one."""

    def __getitem__(self, indices: Any, /) -> Tensor:
        """Return `(B, D)` for B indices."""
        ...


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are generated; None: as the model is configured.

    Attributes:
        seed: sample i depends on (seed, i) alone.
        guidance: scale of the generator's guidance.
        steps: network evaluations of the generator.
        rdm_steps: network evaluations of the RDM.
        label: the class of all samples; None: one for each, as `labels` says.
        labels: how classes are assigned to samples, `balanced` or `random`.
        sdedit_strength: share of the way back to noise from which samples are denoised a second time; None: they are
            not.
        allow_untrained_null: whether guidance may start from a null condition that was never trained.
    """

    seed: int = 0
    guidance: float | None = None
    steps: int | None = None
    rdm_steps: int | None = None
    label: int | None = None
    labels: Assignment = "balanced"
    sdedit_strength: float | None = None
    allow_untrained_null: bool = False


class Pipeline:
    """A generator and, where its condition is a representation, the RDM that generates it.

    Attributes:
        generator: the pixel generator.
        rdm: the representation diffusion model, or None.
        autoencoder: latents <-> images.
        parts: the checkpoints of all these, and of what turns images into representations, by kind; and `weak`, that of
            a worse generator, if samples are guided away from one.
        labels: the classes or clusters that samples may be given.
        precision: of the networks, `no` without mixed precision.
        run: the folder that it was loaded from, if that is a run.
    """

    def __init__(
        self,
        generator: Part,
        rdm: Part | None = None,
        encoder: Part | None = None,
        transform: Part | None = None,
        autoencoder: Part | None = None,
        weak: Part | None = None,
        run: RunFolder | None = None,
    ) -> None:
        """Build the networks of some checkpoints.

        Args:
            generator: the pixel generator.
            rdm: generates what a generator is conditioned on; without, images or representations have to be given.
            encoder: for those who encode their own images.
            transform: what its output goes through; None: standardized over its own features.
            autoencoder: needed when it was trained here.
            weak: a worse generator, a snapshot of its training for example, that samples are guided away from.
            run: where the parts lie, if it is a run; the encoder and its transform are looked for there.

        Raises:
            UserError: the RDM generates other representations than the generator was trained on, or learned them from
                other images, the autoencoder is not the one in whose space it was trained, or the worse generator is
                one of other data or conditions.
        """
        self.run = run
        self.parts = {part.kind: part for part in (generator, rdm, encoder, transform) if part is not None}
        if weak is not None:
            self.parts["weak"] = weak
        self.generator = restore(generator, GENERATORS)
        self.rdm = None if rdm is None else restore(rdm, NETWORKS)
        self.precision = "no"
        if autoencoder is None:
            self.autoencoder = open_autoencoder(self.config.autoencoder, generator.facts.image_size, None)
        else:
            self.autoencoder = restore_autoencoder(autoencoder)
        check_space(self.autoencoder, self.generator.data, "the generator")
        if self.autoencoder.has_weights:
            facts = Facts(image_size=generator.facts.image_size)
            self.parts["autoencoder"] = autoencoder or autoencoder_part(self.autoencoder, facts)
        if weak is not None:
            worse = restore(weak, GENERATORS)
            self.generator.check_weak(worse)
            self.generator.weak = worse
        if self.config.condition == "representation":
            self._check_condition()
        self.labels = self._label_set()

    def __repr__(self) -> str:
        """Return what it generates, from what, and where it computes."""
        parts = ", ".join(f"{kind}={part.config['name']}" for kind, part in self.parts.items() if "name" in part.config)
        return f"Pipeline({parts}, condition={self.config.condition}, {self.image_size} px, {self.device})"

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        generator: str | None = None,
        *,
        weak: Path | str | None = None,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a run's folder, a folder written by `save_pretrained`, or a repository on the hub (`owner/name`).

        Args:
            source: where it is.
            generator: name of the generator's folder in a run that has several.
            weak: a worse generator that samples are guided away from, instead of from the null condition: `snapshot`,
                the one that `train.snapshot` has kept, or a run, or the file of a part; None: the one that was saved
                with the pipeline, if there is one.
            device: of the networks.
            revision: branch, tag or commit of the repository.
            token: for a private repository; None: the one that `hf auth login` has saved.
            cache_dir: where downloads go; None: where huggingface_hub puts them.
            local_files_only: whether to take what was downloaded before.

        Raises:
            UserError: there is no such place, a part is missing, or several generators are there and none is named.
        """
        folder = locate(source, HubOptions(revision, token, cache_dir, local_files_only))
        saved = {kind: folder / f"{kind}.safetensors" for kind in SAVED}
        if saved["generator"].is_file():
            parts = {kind: checkpoint.load(path, SAVED[kind]) for kind, path in saved.items() if path.is_file()}
            if weak is not None:
                parts["weak"] = StageFolder(folder).weaker_part(weak)
            return cls(**parts, run=None).to(device)
        return cls._load_run(RunFolder(folder), generator, weak).to(device)

    @classmethod
    def _load_run(cls, run: RunFolder, name: str | None, weak: Path | str | None) -> Self:
        stage = run.choose_generator(name)
        generator = stage.part()
        stages = {"rdm": run.rdm, "encoder": run.encoder}
        config: GeneratorConfig = parse_saved_config(GENERATORS, generator.kind, generator.config)
        if isinstance(config.autoencoder, TrainableAutoencoderConfig) and config.autoencoder.weights is None:
            stages["autoencoder"] = run.autoencoder  # else the run's own may be another generator's
        parts = {kind: stage.part() for kind, stage in stages.items() if stage.is_trained}
        if weak is not None:
            parts["weak"] = stage.weaker_part(weak)
        return cls(generator, run=run, **parts)

    @property
    def space(self) -> Space | None:
        """The space of the representations that the generator takes, or else that the RDM generates."""
        rdm = None if self.rdm is None else self.rdm.data
        return self.taken or rdm

    @property
    def taken(self) -> Space | None:
        """The space of the representations that the generator takes: as its condition, or generated with the image."""
        if self.config.condition == "representation":
            return self.generator.cond
        return self.generator.spaces["z"]

    @cached_property
    def representation(self) -> Representation:
        """The map from images to z.

        Raises:
            UserError: there is no encoder here, or not that of the representations in which the models work.
        """
        parts = self._all_parts(self.space)
        where = "the pipeline" if self.run is None else str(self.run.path)
        if "encoder" not in parts:
            raise UserError(f"{where} holds no encoder")
        encoder = restore_encoder(parts["encoder"])
        transform = Transform("per_sample")
        if "transform" in parts:
            transform = restore_transform(parts["transform"], encoder.width)
        representation = Representation(encoder, transform)
        if self.space is not None and representation.space != self.space:
            raise UserError(
                f"the encoder of {where} gives representations of {representation.space.id}, but "
                f"{self.config.folder_name} was trained with those of {self.space.id}: restore its encoder and "
                f"transform, or train the generator again"
            )
        return representation.to(self.device)

    @torch.inference_mode()
    def represent(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, S, S)` in [0, 1] to their representations z `(B, d)`.

        Raises:
            UserError: the images have another size; see also `representation`.
        """
        size = self.image_size
        if image.shape[1:] != (3, size, size):
            raise UserError(f"images must be (B, 3, {size}, {size}) in [0, 1], not {tuple(image.shape)}")
        z: Tensor = self.representation(image.to(self.device))
        return z

    @torch.inference_mode()
    def encode(self, image: Tensor, steps: int | None = 100, iterations: int = 4) -> Code:
        """Map images `(B, 3, S, S)` in [0, 1] to codes, from which `decode` generates them again.

        Args:
            image: B of them.
            steps: of the sampler without fresh noise that is undone; None: only z is found.
            iterations: see `rcg.diffusion.inversion.invert`.

        Raises:
            UserError: the generator is not conditioned on representations, or is one of tokens, which have no x_T; see
                also `represent`.
        """
        self._check_codes()
        z = self.represent(image)
        if steps is None:
            return Code(z)
        sampler = self._deterministic(steps)
        with self._autocast():
            x = self.autoencoder.mean(self.autoencoder.posterior(image.to(self.device))).float()
            levels = sampler.levels(self.generator.process)
            noise = self.generator.invert(x, z, levels, iterations)
        check_finite(noise, "the noise of the images")
        return Code(z, noise)

    @torch.inference_mode()
    def decode(
        self,
        code: Code,
        steps: int = 100,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        guidance: float = 1.0,
        boost: float = 0.0,
        wrap_process: Callable[[Process[Any]], Process[Any]] | None = None,
    ) -> Tensor:
        """Return the images `(B, 3, S, S)` in [0, 1] of codes.

        Args:
            code: B of them.
            steps: of the sampler: as many as those of `encode`, so that images come back.
            seed: of the noise, where the code has none.
            indices: of the samples, of which each depends on (seed, index) alone; None: from 0 on.
            guidance: scale; other than 1 it leads away from the images that were encoded, and is warned of: the digits
                of configs/digits.yaml come back with a mean squared error of 6e-5 at 1, and of 3e-3 at 1.5.
            boost: share of the times, at the end, in which fresh noise enters, see `rcg.diffusion.samplers.ddim`; of
                generators of tokens it says nothing.
            wrap_process: see `rcg.diffusion.model.GenerativeModel.sample`.

        Raises:
            UserError: the generator is not conditioned on representations, or its null condition was never trained and
                it is guided; the code does not fit, or something is not finite.
        """
        self._check_codes()
        scaled = self.config.guidance.with_scale(guidance)
        self.config.check_guidance(scaled, allow_untrained_null=False)
        count = len(code.z)
        z, shape = self._given_z(code.z, count), (count, *self.generator.data.shape)
        noise: Noise = SampleNoise(seed, list(range(count) if indices is None else indices), "generator", self.device)
        sampler: SamplerConfig = self.config.sampler.with_steps(steps)
        if not self.has_tokens:
            sampler = self._deterministic(steps).model_copy(update={"boost": boost})
        if code.noise is not None:
            if guidance != 1:
                console.warn(
                    f"guidance of {guidance:g} leads away from the images that were encoded, because noise is found "
                    f"without guidance: they come back at a scale of 1"
                )
            if self.has_tokens or code.noise.shape != shape:
                raise UserError(f"the noise of a code must be {shape}, and of tokens there is none")
            noise = FixedFirstDraw(noise, code.noise.to(self.device))
        with self._autocast():
            x = self.generator.sample(z, noise, guidance=scaled, sampler=sampler, wrap_process=wrap_process)
            image = self.autoencoder.decode(x)
        check_finite(image, "what the code stands for")
        return image.float()

    @property
    def has_tokens(self) -> bool:
        """Whether the generator is one of tokens."""
        return self.config.sampler.discrete

    def _deterministic(self, steps: int) -> Any:
        """Return DDIM without fresh noise, with the spacing of the configured sampler."""
        if self.has_tokens:
            raise UserError(
                f"{self.config.folder_name} generates tokens, which have no x_T to recover: the code of an image is "
                f"its representation and a seed, and inpainting keeps tokens"
            )
        spacing = self.config.sampler.model_dump(include={"spacing"})
        ddim = SAMPLERS.get("ddim")(steps=steps, **spacing)
        ddim.check(self.generator.process)
        return ddim

    def _check_codes(self) -> None:
        if self.config.condition != "representation":
            raise UserError(
                f"{self.config.folder_name} is conditioned on {self.config.condition}, so that images have no code of "
                f"meaning and noise: train one with generator.condition=representation"
            )

    def save_pretrained(self, folder: Path | str, license: str | None = None) -> Path:
        """Write every part and a model card into `folder`, and return it.

        Args:
            folder: where to.
            license: that of the weights, as the hub spells it (`mit`, `cc-by-nc-4.0`); None: the card states none.

        Raises:
            UserError: the encoder's own license forbids that one, the transform of the representations is lost, or
                `folder` is a file.
        """
        folder = Path(os.path.expanduser(folder))
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but a folder is needed for the parts and the card")
        parts = self._all_parts(self.space)
        encoder_license = _license(parts.get("encoder"))
        if license is not None and "-nc" in encoder_license and "-nc" not in license:
            raise UserError(
                f"the encoder's weights are under {encoder_license}, which forbids commercial use and travels with "
                f"them: license={license!r} does not, license={encoder_license!r} does"
            )
        for kind, part in parts.items():
            checkpoint.save(folder / f"{kind}.safetensors", part)
        gallery = None if self.run is None else self.run.gallery / "gallery.png"
        has_gallery = gallery is not None and gallery.is_file()
        if has_gallery:
            assert gallery is not None
            with checkpoint.atomic(folder / "gallery.png") as temporary:
                shutil.copyfile(gallery, temporary)
        render(
            "card.md",
            folder / "README.md",
            config=self.config,
            size=self.image_size,
            parts={kind: part.config.get("name", part.config.get("normalize")) for kind, part in parts.items()},
            license=license,
            encoder_license=encoder_license,
            reports=self._reports(),
            gallery=has_gallery,
        )
        return folder

    def push_to_hub(
        self, repository: str, license: str | None = None, *, private: bool = True, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to `owner/name` on the hub, and return the address.

        Args:
            repository: its name.
            license: that of the weights, as the hub spells it; it has to be stated.
            private: whether a new repository is.
            token: None: the one that `hf auth login` has saved.

        Raises:
            UserError: no license is stated, or one that the encoder's forbids; or the repository cannot be written.
        """
        if license is None:
            own = _license(self._all_parts(self.space).get("encoder"))
            warning = f"; the encoder's weights, which are uploaded too, are under {own}" if own else ""
            raise UserError(f"say under which license the weights are, license='mit' for example{warning}")
        with TemporaryDirectory() as folder:
            return upload(self.save_pretrained(folder, license), repository, private, token)

    def _all_parts(self, z: Space | None) -> dict[str, Part]:
        """Return the parts, and those of the run that turn images into representations in the space of z."""
        if self.run is None or self._is_complete():
            return self.parts
        self.parts = self.parts | representation_parts(self.run, self.config.folder_name, z)
        return self.parts

    def _is_complete(self) -> bool:
        return {"encoder", "transform"} <= self.parts.keys()

    def _reports(self) -> list[dict[str, Any]]:
        """Return the reports of the evaluations of this generator in the run, without the place of the run."""
        if self.run is None:
            return []
        paths = sorted(self.run.evaluation.glob(f"{self.config.folder_name}-[0-9]*/report.json"))
        reports = [read_json(path) for path in paths]
        for report in reports:
            report["samples"].pop("run", None)
        return reports

    def to(self, device: torch.device | str, precision: str = "no") -> Self:
        """Move all networks to `device`, to evaluate them in mixed precision: `no`, `bf16`, `fp16`, or `auto`.

        Raises:
            UserError: fp16 without a GPU.
        """
        self.precision = resolve_precision(precision)
        for module in (self.generator, self.rdm, self.autoencoder, self.__dict__.get("representation")):
            if module is not None:
                module.to(device)
        return self

    @property
    def config(self) -> GeneratorConfig:
        """The generator's section."""
        config = self.generator.config
        assert isinstance(config, GeneratorConfig)
        return config

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.parts["generator"].facts.image_size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    @property
    def can_guide(self) -> bool:
        """Whether there is something to guide the generator away from, within itself or another."""
        return self.config.is_guidable or self.generator.weak is not None

    def takes_labels(self, generates_z: bool = True) -> bool:
        """Whether samples follow from classes or clusters, by the generator, or by the RDM if that generates z."""
        if self.config.condition == "representation":
            return (
                generates_z and self.rdm is not None and self.rdm.cond is not None and self.rdm.cond.vocab is not None
            )
        return self.generator.cond is not None

    def check(self, options: SamplingOptions, generates_z: bool = True) -> None:
        """Refuse options that this pipeline cannot follow.

        Args:
            options: how samples are to be generated.
            generates_z: whether the RDM generates the representations, where the generator is conditioned on one.

        Raises:
            UserError: guidance with nothing to guide away from, or from a null condition that was never trained; a
                class where there are none, or out of range; steps that a sampler cannot take, or for an RDM that is not
                used; no RDM where one is needed.
        """
        config = self.config
        if options.guidance is not None and not self.can_guide:
            raise UserError(
                f"{config.folder_name} has no condition to guide toward: leave --guidance out, name a worse generator "
                f"with --weak, or choose a generator with a condition"
            )
        if self.generator.weak is None:
            config.check_guidance(config.guidance.with_scale(options.guidance), options.allow_untrained_null)
        config.sampler.with_steps(options.steps).check(self.generator.process)
        if config.condition == "representation" and generates_z:
            rdm = self._require_rdm()
            rdm.config.check_guidance(rdm.config.guidance, options.allow_untrained_null)
            try:
                rdm.config.sampler.with_steps(options.rdm_steps).check(rdm.process)
            except UserError as error:
                raise UserError(f"the RDM's {error}") from None
        elif options.rdm_steps is not None:
            raise UserError("--rdm-steps was given, but no RDM generates representations here: leave it out")
        if options.label is not None:
            if not self.takes_labels():
                raise UserError("a class was asked for, but neither the generator nor the RDM was trained on classes")
            if not self.takes_labels(generates_z):
                raise UserError(
                    "a class was asked for, but it is the RDM's, and representations are given: leave it out"
                )
            self.labels.checked(options.label)
        if not isinstance(options.seed, int) or not 0 <= options.seed < 2**63:
            raise UserError(f"a seed is a whole number from 0 to 2^63 - 1, not {options.seed}")
        if options.labels not in get_args(Assignment):
            raise UserError(f"labels are {' or '.join(get_args(Assignment))}, not {options.labels!r}")
        if options.sdedit_strength is not None and not 0 < options.sdedit_strength <= 1:
            raise UserError(f"a strength of SDEdit lies above 0, at most at 1, not at {options.sdedit_strength}")

    @overload
    def sample(
        self,
        number: int,
        options: SamplingOptions | None = ...,
        *,
        z: Rows | None = ...,
        batch_size: int = ...,
        output: Literal["pil"] = ...,
    ) -> list[Image]: ...

    @overload
    def sample(
        self,
        number: int,
        options: SamplingOptions | None = ...,
        *,
        z: Rows | None = ...,
        batch_size: int = ...,
        output: Literal["tensor"],
    ) -> Tensor: ...

    def sample(
        self,
        number: int,
        options: SamplingOptions | None = None,
        *,
        z: Rows | None = None,
        batch_size: int = 64,
        output: Literal["pil", "tensor"] = "pil",
    ) -> list[Image] | Tensor:
        """Generate so many images.

        Args:
            number: N.
            options: how.
            z: representations `(N, d)` to condition on instead of generated ones; a generator of both keeps them, and
                resamples the images beside them (`rcg.diffusion.repaint`), which is approximate and costs five times
                the evaluations.
            batch_size: how many are generated at a time.
            output: `pil` for N pictures of PIL, `tensor` for `(N, 3, H, W)` in [0, 1] on the CPU.

        Raises:
            UserError: there is nothing to generate, or too few representations are given; see also `generate`.
        """
        if number < 1 or batch_size < 1:
            raise UserError(f"numbers of images and of a batch are at least 1, not {number} and {batch_size}")
        if isinstance(z, Tensor) and len(z) < number:
            raise UserError(f"{number} images need as many representations, and z holds {len(z)}")
        batches = self.batches(range(number), batch_size, options, z=z)
        images = torch.cat([samples.images.cpu() for samples in batches])
        return images if output == "tensor" else [to_pil(image) for image in images]

    @torch.inference_mode()
    def generate(
        self, indices: Sequence[int], options: SamplingOptions | None = None, *, z: Tensor | None = None
    ) -> Samples:
        """Generate the samples with the given indices; sample i depends on (seed, i) alone, not on its batch.

        Args:
            indices: which samples, B of them.
            options: how.
            z: representations `(B, D)` to condition on instead of generated ones.

        Raises:
            UserError: there are no indices, or negative ones; the options do not fit, see `check`; or something is not
                finite.
        """
        options = options or SamplingOptions()
        if not len(indices) or min(indices) < 0:
            raise UserError("samples are generated by their indices, at least one, from 0 on")

        def draw(cond: Tensor | None, noise: Noise, guidance: GuidanceConfig, sampler: SamplerConfig) -> Generated:
            sample = self.generator.sample(cond, noise, guidance=guidance, sampler=sampler)
            check_finite(sample, f"what {self.config.name} generates")
            if options.sdedit_strength is not None:
                noise = SampleNoise(options.seed, list(indices), "second pass", self.device)
                sample = sdedit(self.generator, sample, options.sdedit_strength, cond, noise, guidance, sampler)
                check_finite(sample, f"what {self.config.name} generates in its second pass")
            return self._decoded(sample)

        return self._samples(list(indices), options, z, draw)

    @torch.inference_mode()
    def inpaint(
        self,
        image: Tensor,
        hole: Tensor,
        options: SamplingOptions | None = None,
        *,
        z: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> Samples:
        """Fill the holes of images; row i depends on (seed, i) and its image alone.

        Args:
            image: `(B, 3, H, W)` in [0, 1].
            hole: booleans `(B, H, W)`, true where to generate.
            options: how.
            z: the images' own representations `(B, D)`, or others, to condition on instead of generated ones.
            resampling: how generated parts are fitted to known ones.

        Raises:
            UserError: the options do not fit, see `check`; or resampling is asked of a generator of tokens.
        """
        self.check_resampling(resampling)
        options = options or SamplingOptions()
        image, hole = image.to(self.device), hole.to(self.device)

        def fill(cond: Tensor | None, noise: Noise, guidance: GuidanceConfig, sampler: SamplerConfig) -> Generated:
            draws = partial(SampleNoise, options.seed, use="generator", device=self.device)
            args = self.generator, self.autoencoder, image, hole, cond, draws, guidance, sampler, resampling
            return Generated(inpaint(*args))

        return self._samples(list(range(len(image))), options, z, fill)

    @torch.inference_mode()
    def redraw(
        self,
        image: Tensor,
        strength: float,
        options: SamplingOptions | None = None,
        *,
        z: Tensor | None = None,
        indices: Sequence[int] | None = None,
    ) -> Samples:
        """Return images that share with `image` what noise leaves of it; see `rcg.diffusion.sdedit`.

        Args:
            image: `(B, 3, S, S)` in [0, 1].
            strength: share of the way to noise, from 0 (the image, through the autoencoder) to 1 (a new sample).
            options: how.
            z: the images' own representations `(B, D)`, or others, to condition on instead of generated ones.
            indices: of the samples, of which each depends on (seed, index) alone; None: from 0 on.

        Raises:
            UserError: the strength is out of range, or the options do not fit; see `check`.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"a strength of redrawing lies between 0 and 1, not at {strength:g}")

        def draw(cond: Tensor | None, noise: Noise, guidance: GuidanceConfig, sampler: SamplerConfig) -> Generated:
            x = self.autoencoder.mean(self.autoencoder.posterior(image.to(self.device)))
            if self.generator.pair is not None:
                x = self.generator.pair.join(x, self.represent(image) if cond is None else cond)
            return self._decoded(sdedit(self.generator, x, strength, cond, noise, guidance, sampler))

        own = list(range(len(image)) if indices is None else indices)
        return self._samples(own, options or SamplingOptions(), z, draw)

    def check_resampling(self, resampling: Resampling | None) -> None:
        """Raise `UserError` if resampling is asked of a generator of tokens."""
        if resampling is not None and self.has_tokens:
            raise UserError(
                f"{self.config.folder_name} generates tokens, which fit known ones without resampling: leave "
                f"--resamplings and --jump-length out"
            )

    def batches(
        self,
        indices: Sequence[int],
        batch_size: int,
        options: SamplingOptions | None = None,
        *,
        z: Rows | None = None,
        progress: bool = False,
    ) -> Iterator[Samples]:
        """Generate many samples batch by batch, with a progress bar if asked; see `generate`.

        Sample i is conditioned on row i of `z`, where that is given.
        """
        with console.progress(total=len(indices), desc="sampling", unit="image", shown=progress) as bar:
            for start in range(0, len(indices), batch_size):
                batch = list(indices[start : start + batch_size])
                samples = self.generate(batch, options, z=None if z is None else z[batch])
                bar.update(len(batch))
                yield samples

    def _samples(
        self, indices: list[int], options: SamplingOptions, z: Tensor | None, generate: Callable[..., Generated]
    ) -> Samples:
        """Return samples that `generate(cond, noise, guidance, sampler)` generates from their conditions."""
        self.check(options, generates_z=z is None)
        if z is not None:
            z = self._given_z(z, len(indices))
        labels, config = self.labels_of(indices, options, generates_z=z is None), self.config
        guidance, sampler = config.guidance.with_scale(options.guidance), config.sampler.with_steps(options.steps)
        noise = SampleNoise(options.seed, indices, "generator", self.device)
        with self._autocast():
            if config.condition == "representation" and z is None:
                z = self.generate_z(indices, options)
            cond = z if config.condition in ("none", "representation") else labels
            generated = generate(cond, noise, guidance, sampler)
            check_finite(generated.images, "what the autoencoder decodes")
        return Samples(indices, generated.images.float(), z if generated.z is None else generated.z, labels)

    def _decoded(self, sample: Tensor) -> Generated:
        """Return the images of samples `(B, *S)` of the generator, and the z generated with them, if there is any."""
        latent, z = self.generator.split(sample)
        return Generated(self.autoencoder.decode(latent), z)

    def _given_z(self, z: Tensor, count: int) -> Tensor:
        """Return given representations `(count, D)` on the device; raises `UserError` if they cannot be meant."""
        if self.taken is None:
            raise UserError(f"{self.config.folder_name} is not conditioned on representations, but z was given")
        expected = (count, *self.taken.shape)
        if z.shape != expected or not z.is_floating_point():
            raise UserError(f"z must be {expected} floating-point numbers, not {tuple(z.shape)} of {z.dtype}")
        z = z.to(self.device).float()
        check_finite(z, "what was given as representation")
        return z

    @torch.inference_mode()
    def generate_z(self, indices: Sequence[int], options: SamplingOptions | None = None) -> Tensor:
        """Generate the representations z `(B, d)` of samples with the RDM; see `generate`.

        Raises:
            UserError: there is no RDM, or it is conditioned on vectors; or something is not finite.
        """
        options = options or SamplingOptions()
        rdm = self._require_rdm()
        if rdm.cond is not None and rdm.cond.vocab is None:
            raise UserError(
                "the RDM is conditioned on a vector: use tools/sample_rdm.py CONFIG --vectors FILE, then "
                "tools/sample.py, or tools/evaluate.py, RUN --representations FILE"
            )
        cond = None if rdm.cond is None else self.labels_of(indices, options)
        noise = SampleNoise(options.seed, list(indices), "rdm", self.device)
        sampler = rdm.config.sampler.with_steps(options.rdm_steps)
        with self._autocast():
            z = rdm.sample(cond, noise, sampler=sampler).float()
        check_finite(z, "what the RDM generates")
        return z

    def _require_rdm(self) -> GenerativeModel:
        """Return the RDM; raises `UserError` if there is none to generate what the generator is conditioned on."""
        if self.rdm is None:
            raise UserError(
                f"{self.config.folder_name} is conditioned on representations, but there is no RDM that generates "
                f"them: run tools/train_rdm.py, or give representations or images"
            )
        return self.rdm

    def labels_of(self, indices: Sequence[int], options: SamplingOptions, generates_z: bool = True) -> Tensor | None:
        """Return the labels `(B,)` of samples, None where nothing takes one; see `check`."""
        if not self.takes_labels(generates_z):
            return None
        if options.label is not None:
            labels = [self.labels.checked(options.label)] * len(indices)
        else:
            labels = self.labels.assign(indices, options.labels, options.seed)
        return torch.tensor(labels, device=self.device)

    def _label_set(self) -> LabelSet:
        """Return the labels of the part that takes them; a converted one may not know their names."""
        is_rdm = self.config.condition == "representation"
        model = self.rdm if is_rdm else self.generator
        if model is None:
            return LabelSet(())
        facts = self.parts["rdm" if is_rdm else "generator"].facts
        counts, vocab = facts.cluster_counts, 0 if model.cond is None else model.cond.vocab or 0
        if counts:
            return LabelSet.of_clusters(counts)
        return LabelSet(facts.classes if len(facts.classes) == vocab else tuple(map(str, range(vocab))))

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks multiply in the pipeline's precision."""
        half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, half, enabled=self.precision != "no")

    def _check_condition(self) -> None:
        needed = self.generator.cond
        assert needed is not None
        self._check_images()
        if self.rdm is None:
            return
        if standardizes(self.rdm.data, needed):
            statistics, weak = self._statistics(self.rdm.data), self.generator.weak
            self.generator = self.generator.standardized(self.rdm.data, *statistics)
            self.generator.weak = weak and weak.standardized(self.rdm.data, *statistics)
        elif self.rdm.data != needed:
            raise UserError(
                f"the generator is conditioned on representations of {needed}, but the RDM generates those of "
                f"{self.rdm.data}: train one of them again on the other's encoder"
            )

    def _statistics(self, z: Space) -> tuple[Tensor, Tensor]:
        """Return mean and std `(d,)` of representations that were normalized over the data set to z.

        Raises:
            UserError: they are not here.
        """
        parts = self._all_parts(z)
        if "transform" not in parts:
            raise UserError(
                f"the generator is conditioned on representations as they leave the encoder, and the RDM generates "
                f"{z}: the transform that leads from one to the other is missing"
            )
        transform = restore_transform(parts["transform"], z.shape[0])
        if transform.id != z.id.partition("/")[2]:
            raise UserError(
                f"the transform is {transform.id}, but the RDM generates {z}: give the one that it learned from"
            )
        return transform.mean, transform.std

    def _check_images(self) -> None:
        """Refuse parts that were trained on different images; those of other programs do not say on which."""
        images = {kind: part.facts.fingerprint for kind, part in self.parts.items() if part.facts.fingerprint}
        for kind, name in (("rdm", "RDM"), ("encoder", "encoder")):
            if {"generator", kind} <= images.keys() and images["generator"] != images[kind]:
                raise UserError(
                    f"the {name} and the generator were trained on different images (fingerprints {images[kind]} and "
                    f"{images['generator']}), or on different crops of them: train one again on the other's images"
                )


def _license(encoder: Part | None) -> str:
    """Return the license of an encoder's weights; empty where they were trained here, or there are none."""
    if encoder is None or encoder.config.get("weights") in (None, "none"):
        return ""
    return restore_encoder(encoder).license


def check_finite(x: Tensor, what: str) -> None:
    """Raise `UserError` if `x` holds numbers that are not finite, which would become black images without a word."""
    if not x.isfinite().all():
        raise UserError(
            f"{what} is not finite: its weights diverged in training (see log.jsonl), or guidance, temperature or "
            f"precision is too much for them"
        )
