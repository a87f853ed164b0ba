"""Diffusion Autoencoders' checkpoints (Preechakul et al., CVPR 2022): encoder, U-Net and latent network in one file.

A file holds a live network and its average, the noise of its logged samples, the settings of its training, and beside a
latent network the mean and the std of the representations that it was trained on. The authors' baselines are files of
the U-Net alone, without a condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts, Part
from rcg.core.contracts import Encoder, Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, ENCODERS, GENERATORS, NETWORKS
from rcg.core.rng import SampleNoise
from rcg.diffusion.model import GenerativeModel, build
from rcg.encoding.encoder import build_encoder, encoder_part
from rcg.encoding.representation import Representation, standardizes
from rcg.encoding.run_folder import RunFolder, StageFolder
from rcg.encoding.transform import Transform, transform_part
from rcg.encoding.workspace import representation_parts
from rcg.generators.published import _adm, _attributes, _files, _unet
from rcg.generators.published._converter import Converter
from rcg.generators.published._files import Tensors

LIVE, AVERAGE = "model.", "ema_model."
ENCODER, LATENT = "encoder.", "latent_net."
"""Prefixes of original names: of the live network and its average, and in both of their parts; the U-Net has none."""
NOISE, LOGGED = "x_T", 32
"""The original name of the noise of logged samples, and their number."""
STATISTICS = {"conds_mean": "mean", "conds_std": "std"}
"""The original names of what z was standardized by, and ours."""
STEP, HEADS = "global_step", "net_beatgans_attn_head"
HEAD = {"out.0": "norm", "out.3": "output"}
"""The original names of the encoder's last layers, and ours."""
TIME, TIME_OF_ADM = "time_embed.time_embed.", "time_embed."
"""The original name of the U-Net's time embedding, and that in ADM's files."""
TRUNK = "trunk."
"""Our prefix of the encoder's layers before the last."""
LAYERS = {
    "time_embed": "time",
    "layers.*.linear": "layers.*.linear",
    "layers.*.linear_emb": "layers.*.scale",
    "layers.*.norm": "layers.*.norm",
}
"""The original names of the latent network's layers but for the last, and ours."""
SCALE, TWIN = ".linear_emb.", ".cond_layers.1."
"""The two names under which the layer of the time is saved."""
PUBLISHED = {(64, 64, (1, 2, 4, 8)), (128, 128, (1, 1, 2, 3, 4)), (256, 128, (1, 1, 2, 2, 4, 4))}
"""Side, width and multipliers of the published U-Nets, which all have one attention head."""
EXPECTED = {"T": 1000, "net_resblock_updown": True}
EXPECTED_LATENT = {"net_latent_condition_bias": 1, "latent_znormalize": True}
"""Settings of the training at which the original networks and processes are ours."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "const0.008": "constant"}
"""The original names of schedules, and ours."""
FOREIGN = {
    "condition": ("representation", "none"),
    "groups": _unet.GROUPS,
    "autoencoder.name": "pixels",
    "process.schedule": tuple(SCHEDULES.values()),
    "process.variance": ("fixed_small", "fixed_large"),
}
FOREIGN_LATENT = {"condition": "none", "process.schedule": tuple(SCHEDULES.values())}
"""What the original code has fixed; see `_files.check_settings`."""


class Original(NamedTuple):
    """What an original file holds."""

    path: Path
    average: dict[str, Tensor]
    live: dict[str, Tensor]
    """Empty where the file has one set of weights."""
    rest: dict[str, Tensor]
    """What belongs to no network."""
    settings: Mapping[str, Any]
    side: int
    """Of the images, in pixels."""
    step: int

    @property
    def has_encoder(self) -> bool:
        """Whether it is an autoencoder, and not a U-Net without a condition."""
        return any(key.startswith(ENCODER) for key in self.average)

    def weights(self, prefix: str, average: bool = True) -> dict[str, Tensor]:
        """Return the tensors of one part of the averaged or the live network, by their names in it."""
        return _part(self.average if average else self.live, prefix)

    def extra(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of one part that only the original format needs, each in memory of its own."""
        live = self.weights(prefix, average=False)
        return {f"{_files.LIVE}{prefix}{key}": value.clone() for key, value in live.items() if TWIN not in key}

    def number(self, key: str, default: float) -> float:
        """Return a setting of the training; raises `UserError` if it is no number."""
        return _files.number_of(self.settings, key, default, self.path)

    def schedule(self, key: str, default: str) -> str:
        """Return our name of a schedule; raises `UserError` if we have none."""
        name = self.settings.get(key, default)
        for original, ours in SCHEDULES.items():
            if name == original:
                return ours
        raise UserError(f"{self.path}: its setting {key} is {name!r}, and {', '.join(SCHEDULES)} can be converted")


@CONVERTERS.register
class DiffAEConverter(Converter):
    """Reads and writes the training checkpoints of Diffusion Autoencoders, with or without a latent network."""

    options = frozenset({"heads"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's encoder, adm and, if it holds a latent network, RDM.

        A U-Net alone becomes adm-none, a classifier of attributes directions of the z of a run that is there.

        Returns:
            The files written.

        Raises:
            UserError: the file is another, or was trained in a way that ours cannot be, or its tensors do not fit; or
                the run holds such parts.
        """
        content = pretrained.read(path)
        tensors = pretrained.state_dict(content, path)
        pretrained.check_finite(tensors, path)
        if _attributes.WEIGHT in tensors:
            return _attributes.save(tensors, _settings(content), run, path)
        original = _original(path, content, tensors)
        stages = [run.encoder, run.rdm, run.stage_folder("adm")]
        for stage in stages if original.has_encoder else [run.stage_folder("adm-none")]:
            if stage.path.exists():
                raise UserError(f"{stage.path} is there already: choose another folder")
        with _refusing(path):
            heads = _heads(original, self.heads)
            encoder = _encoder(original, heads) if original.has_encoder else None
            # The U-Net takes representations as they leave the encoder, the latent network generates standardized ones.
            cond = None if encoder is None else Representation(encoder, Transform("none")).space
            generator = _generator(original, heads, cond)
            transform, rdm = None, None
            if encoder is not None and original.weights(LATENT):
                transform = _transform(original, encoder.width)
                rdm = _rdm(original, Representation(encoder, transform).space)
        # All of it fits.
        written = []
        if encoder is not None:
            written += [run.encoder.checkpoint, run.encoder.original]
            checkpoint.save(run.encoder.checkpoint, encoder_part(encoder, Facts(image_size=original.side)))
            checkpoint.save_tensors(run.encoder.original, original.extra(ENCODER), {})
        if transform is not None:
            fitted = transform_part(transform)
            written.append(run.fitted("transform", fitted.config))
            checkpoint.save_tensors(written[-1], fitted.tensors, fitted.config)
        if rdm is not None:
            weights, extra = rdm.state_dict(), original.extra(LATENT)
            written += _files.save_model(run.rdm, "rdm", rdm, weights, extra, path)
        kept_elsewhere = () if transform is None else STATISTICS
        rest = {key: value for key, value in original.rest.items() if key not in kept_elsewhere}
        weights, extra = generator.state_dict(), original.extra("") | rest
        known = {"image_size": original.side, "details": {STEP: original.step}}
        return written + _files.save_generator(run, generator, weights, extra, path, **known)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's encoder, adm and, if there is one, RDM into an original checkpoint.

        Without the live weights of a converted file the averaged ones replace them; its noise is drawn anew.

        Raises:
            UserError: parts are missing, or the original code would take them for others.
        """
        part, live, rest = _files.load_generator(run, "adm", _files.DIFFUSION | FOREIGN)
        config, heads = part.config, part.config["heads"]
        if heads is None:
            raise UserError(f"{part.source} chooses its attention heads by their width, and the original code cannot")
        settings = {"img_size": part.facts.image_size, HEADS: heads, "dropout": config["dropout"]}
        settings["beta_scheduler"] = _files.inverse(SCHEDULES)[config["process"]["schedule"]]
        average = unet_to_original(part.tensors, heads, is_styled=config["condition"] == "representation")
        if config["condition"] == "representation":
            _files.check_settings(part, GENERATORS, {"condition_path": "style"})
            encoder = run.encoder.part()
            shared = {"name": "semantic", "groups": _unet.GROUPS, "heads": heads}
            _files.check_settings(encoder, ENCODERS, shared)
            settings["net_enc_num_res_blocks"] = encoder.config["blocks"]
            tensors = encoder_to_original(encoder.tensors, heads)
            average |= {ENCODER + key: value for key, value in tensors.items()}
            live |= _live(run.encoder)
            if run.rdm.is_trained:
                rdm = run.rdm.part()
                shared = {"name": "skip_mlp", "time_width": encoder.config["dim"]}
                _files.check_settings(rdm, NETWORKS, shared | _files.DIFFUSION | FOREIGN_LATENT)
                settings["latent_beta_scheduler"] = _files.inverse(SCHEDULES)[rdm.config["process"]["schedule"]]
                average |= {LATENT + key: value for key, value in latent_to_original(rdm.tensors).items()}
                live |= _with_twins(_live(run.rdm))
            rest |= _statistics(run, part)
        if NOISE not in rest:
            side = part.facts.image_size
            rest[NOISE] = SampleNoise(0, range(LOGGED), NOISE).normal((3, side, side))
        tensors = {LIVE + key: live.get(key, value) for key, value in average.items()}
        tensors |= {AVERAGE + key: value for key, value in average.items()} | rest
        step = part.facts.details.get(STEP, part.facts.step)
        _files.write(path, {STEP: step, "epoch": 0, "state_dict": tensors, "hyper_parameters": settings})


def _settings(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the training; empty where the file does not hold them."""
    settings = content.get("hyper_parameters")
    return settings if isinstance(settings, Mapping) else {}


def _original(path: Path, content: Mapping[str, Any], tensors: Tensors) -> Original:
    """Sort what a file holds; raises `UserError` if it is another, or was trained in a way that ours cannot be."""
    average, live = _files.select(tensors, AVERAGE), _files.select(tensors, LIVE)
    if "input_blocks.0.0.weight" not in average:
        raise UserError(f"{path} is not a checkpoint of a diffusion autoencoder: it has no {AVERAGE}input_blocks.0.0")
    complaints = pretrained.misfits(average, live, exact=True) if live else ""
    if complaints:
        raise UserError(f"{path}: its live network is another than its average: {complaints}")
    settings = _settings(content)
    has_latent = any(key.startswith(LATENT) for key in average)
    for key, value in (EXPECTED | EXPECTED_LATENT if has_latent else EXPECTED).items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: its setting {key} is {settings[key]!r}, and only {value!r} can be converted")
    rest = {key: value.clone() for key, value in tensors.items() if not key.startswith((AVERAGE, LIVE))}
    step = int(_files.number_of(content, STEP, 0, path))
    return Original(path, average, live, rest, settings, _side(tensors.get(NOISE), settings, path), step)


def _side(noise: Tensor | None, settings: Mapping[str, Any], path: Path) -> int:
    """Return the side of the images in pixels: that of the noise, or of the settings; raises `UserError`."""
    if noise is None:
        side = int(_files.number_of(settings, "img_size", 0, path))
    else:
        side = noise.shape[-1] if noise.ndim == 4 and noise.shape[2] == noise.shape[3] else 0
    if side < 1:
        raise UserError(f"{path} does not say the side of its images: {NOISE} must be (N, 3, S, S), or img_size be set")
    return side


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Refuse a file with tensors that are missing, or so shaped that no network can be built of them."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: its tensors describe no diffusion autoencoder ({reason})") from None


def _live(stage: StageFolder) -> dict[str, Tensor]:
    """Return the live weights of a converted part by their names in the whole network."""
    return _files.select(_files.load_extra(stage), _files.LIVE)


def _statistics(run: RunFolder, generator: Part) -> dict[str, Tensor]:
    """Return the mean and the std by which z is standardized, under their original names; none without an RDM.

    Raises:
        UserError: the generator takes, or the RDM generates, something else than in the original code.
    """
    rep = generator.facts.cond
    z = run.rdm.part(weights=False).facts.data if run.rdm.is_trained else rep
    if rep is None or z is None or not rep.id.endswith("/none") or not (z == rep or standardizes(z, rep)):
        raise UserError(
            f"{run.path} has a generator of {rep} and representations {z}: the original code takes them as they leave "
            f"the encoder, and standardizes them over the data set for the latent network"
        )
    learned = representation_parts(run, "adm", z)["transform"].tensors
    return {key: learned[ours][None] for key, ours in STATISTICS.items() if ours in learned}


def _part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a network, by their names in it."""
    if prefix:
        return _files.select(tensors, prefix)
    return {key: value for key, value in tensors.items() if not key.startswith((ENCODER, LATENT))}


def _heads(original: Original, given: int | None) -> int:
    """Return the attention heads that a person knows, or the settings, or published ones; raises `UserError`."""
    if given is not None:
        return given
    if HEADS in original.settings:
        return int(original.number(HEADS, 1))
    shape = _unet.shape_of(original.weights(""), original.side)
    if (original.side, shape["width"], tuple(shape["multipliers"])) in PUBLISHED:
        return 1
    raise UserError(
        f"{original.path} has a width of {shape['width']} and multipliers {shape['multipliers']} at {original.side} "
        f"px, which were not published, and does not say how many attention heads it has: give them as --heads"
    )


def _encoder(original: Original, heads: int) -> Encoder:
    """Build the encoder with its weights."""
    tensors = original.weights(ENCODER)
    config = ENCODERS.get("semantic").Config(
        **_unet.half_of(tensors, original.side, int(original.number("net_enc_num_res_blocks", 2))),
        heads=heads,
        dim=len(tensors["out.3.weight"]),
    )
    encoder = build_encoder(config, original.side, load=False)
    pretrained.fit(encoder, encoder_to_ours(tensors, heads), original.path)
    return encoder


def _transform(original: Original, width: int) -> Transform:
    """Return the map from representations of `width` to z, standardized over the data set."""
    missing = [key for key in STATISTICS if key not in original.rest]
    if missing:
        raise UserError(
            f"{original.path} has a latent network, but no {missing[0]}: what it generates is standardized by "
            f"{' and '.join(STATISTICS)}"
        )
    transform = Transform("per_dataset")
    learned = {ours: original.rest[key].flatten() for key, ours in STATISTICS.items()}
    transform.load(learned, width, str(original.path))
    if not (transform.std > 0).all():
        raise UserError(f"{original.path}: conds_std holds values that are not positive")
    return transform


def _generator(original: Original, heads: int, cond: Space | None) -> GenerativeModel:
    """Build the U-Net with its weights, for representations in the space `cond`, or without a condition."""
    tensors = {key.replace(TIME, TIME_OF_ADM): value for key, value in original.weights("").items()}
    embedding, width = tensors["time_embed.0.weight"].shape
    config = GENERATORS.get("adm").Config(
        **_unet.shape_of(tensors, original.side),
        heads=heads,
        time_width=width,
        embedding_width=embedding,
        dropout=original.number("dropout", 0.1),
        condition="none" if cond is None else "representation",
        condition_dropout=0.0,
        condition_path="style",
        process={
            "name": "gaussian",
            "schedule": original.schedule("beta_scheduler", "linear"),
            "variance": "fixed_large",
        },
        sampler={"name": "ddim", "steps": 100, "spacing": "leading", "clip": True},
    )
    model = build(config, GENERATORS.get("adm"), Space((3, original.side, original.side), id="pixels"), cond)
    weights = {f"network.{key}": value for key, value in _adm.to_ours(tensors, _adm.Layout(0, heads=heads)).items()}
    if model.null is not None:
        weights["null"] = torch.zeros_like(model.null)
    pretrained.fit(model, weights, original.path)
    return model


def _rdm(original: Original, space: Space) -> GenerativeModel:
    """Build the latent network with its weights."""
    tensors = original.weights(LATENT)
    time_width, frequencies = tensors["time_embed.0.weight"].shape
    config = NETWORKS.get("skip_mlp").Config(
        width=len(tensors["layers.0.linear.weight"]),
        depth=_files.count(tensors, "layers"),
        time_width=time_width,
        frequencies=frequencies,
        condition_dropout=0.0,
        process={
            "name": "gaussian",
            "schedule": original.schedule("latent_beta_scheduler", "const0.008"),
            "predict": "eps",
            "loss": "l1",
            "variance": "fixed_large",
        },
        sampler={"name": "ddim", "steps": 100, "spacing": "leading"},
    )
    model = build(config, NETWORKS.get("skip_mlp"), space, None)
    pretrained.fit(model, latent_to_ours(tensors, original.path), original.path)
    return model


def unet_to_original(tensors: Tensors, heads: int, is_styled: bool = True) -> dict[str, Tensor]:
    """Return tensors of our ADM, `network. ...`, under the original names, which differ with a style."""
    as_adm = _adm.to_original(tensors, "representation", _adm.Layout(0, heads=heads))
    return {key.replace(TIME_OF_ADM, TIME) if is_styled else key: value for key, value in as_adm.items()}


def encoder_to_ours(tensors: Tensors, heads: int) -> dict[str, Tensor]:
    """Return original tensors of the encoder under our names, its last convolution as a matrix."""
    head = {_files.swap(key, HEAD): value for key, value in tensors.items() if key.startswith("out.")}
    trunk = {key: value for key, value in tensors.items() if not key.startswith("out.")}
    renamed = _adm.to_ours(trunk, _adm.Layout(0, heads=heads))
    head["output.weight"] = head["output.weight"].flatten(1)
    return head | {key.replace("unet.", TRUNK, 1): value for key, value in renamed.items()}


def encoder_to_original(tensors: Tensors, heads: int) -> dict[str, Tensor]:
    """Return tensors of our encoder under the original names."""
    head = {
        _files.swap(key, _files.inverse(HEAD)): value for key, value in tensors.items() if not key.startswith(TRUNK)
    }
    trunk = {key.replace(TRUNK, "unet.", 1): value for key, value in tensors.items() if key.startswith(TRUNK)}
    head["out.3.weight"] = head["out.3.weight"][..., None, None]
    return head | _adm.to_original(trunk, "representation", _adm.Layout(0, heads=heads))


def _with_twins(tensors: Tensors) -> dict[str, Tensor]:
    """Return original tensors of the latent network with those that have two names under both."""
    return {**tensors, **{key.replace(SCALE, TWIN): value for key, value in tensors.items() if SCALE in key}}


def latent_to_ours(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """Return original tensors of the latent network under our names; raises `UserError` if twins differ."""
    last = f"layers.{_files.count(tensors, 'layers') - 1}.linear"
    names = {last: "output", **LAYERS}
    single = {key: value for key, value in tensors.items() if TWIN not in key}
    for key, value in _with_twins(single).items():
        if key not in tensors or not torch.equal(tensors[key], value):
            raise UserError(f"{path}: {LATENT}{key} must hold the same values as {key.replace(TWIN, SCALE)}")
    return {f"network.{_files.swap(key, names)}": value for key, value in single.items()}


def latent_to_original(tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors of our network, `network. ...`, under the original names."""
    last = f"layers.{_files.count(tensors, 'network.layers')}.linear"
    names = _files.inverse({last: "output", **LAYERS})
    return _with_twins({_files.swap(key.removeprefix("network."), names): value for key, value in tensors.items()})
