"""Any network of timm as a frozen encoder, with the preprocessing of its model card."""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import Field, field_validator, model_validator
from timm.data import resolve_model_data_config
from timm.models import build_model_with_cfg
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from rcg.config import EncoderConfig, Side
from rcg.core import pretrained
from rcg.core.contracts import CatalogEntry, Encoder
from rcg.core.errors import UserError, nearest
from rcg.core.registry import ENCODERS
from rcg.encoders._presets import PRESETS

Plain = bool | int | float | str
NORM_BEHIND_POOLING = "fc_norm.weight"
LOADING = {
    name
    for function in (timm.create_model, build_model_with_cfg)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind != inspect.Parameter.VAR_KEYWORD
} | {"features_only", "pruned"}
"""Arguments of timm's functions, not of a network: some of them read files past our own reader."""


class TimmModelConfig(EncoderConfig):
    """A timm network; mean, std, size and interpolation are its card's unless given here."""

    name: str = "timm_model"
    preset: Annotated[str | None, Field(exclude=True)] = None
    """A short name with its settings (`dinov2_vitb14`); tools/list_encoders.py lists them."""
    model: str
    """timm's name, tag included (`vit_base_patch16_224.dino`)."""
    weights: str = "pretrained"
    """`pretrained`, a hub id (`hf-hub:owner/name`), a local .safetensors or .pth file, or `none`."""
    input_size: Side | None = None
    """Side that images are resized to; null: the card's."""
    pooling: Literal["token", "avg", "map"] | None = None
    """How features are pooled: class token, mean, attention pooling; null: the network's own way."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel; null: the card's."""
    std: tuple[float, float, float] | None = None
    """Std of each channel; null: the card's."""
    feature: Literal["backbone"] = "backbone"
    options: dict[str, Plain] = {}
    """Further arguments of the network's constructor, such as pad_type: same."""

    @classmethod
    def presets(cls) -> Sequence[str]:
        """Return the short names of networks."""
        return list(PRESETS)

    @model_validator(mode="before")
    @classmethod
    def _follow_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("preset") is None and isinstance(value.get("model"), str) and value["model"] in PRESETS:
            value = {**value, "preset": value["model"], "model": PRESETS[value["model"]].model}
        name = value.get("preset")
        if name is None:
            return value
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; {_close(str(name), PRESETS)}")
        preset = PRESETS[name]
        if value.get("model", preset.model) != preset.model:
            raise ValueError(f"preset {name} is {preset.model}, but model is {value['model']}: give one of the two")
        settings = {"model": preset.model, "input_size": preset.input_size, "pooling": preset.pooling}
        chosen = {key: setting for key, setting in settings.items() if setting is not None}
        return {**chosen, **value}

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        if not name.startswith("hf-hub:") and not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm has no model {name!r}; {_close(name, timm.list_models())}")
        return name

    @field_validator("options")
    @classmethod
    def _describe_the_network(cls, options: dict[str, Plain]) -> dict[str, Plain]:
        for name in options:
            if name in LOADING:
                raise ValueError(f"{name}: options are those of the network alone; encoder.weights names a file")
        return options


@ENCODERS.register
class TimmModel(Encoder):
    """Maps images `(B, 3, H, W)` in [0, 1] to timm's pooled features `(B, width)`."""

    Config = TimmModelConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: TimmModelConfig, image_size: int, load: bool = True) -> None:
        """Build the network, and load its weights if asked.

        Raises:
            UserError: the weights are unavailable or do not fit, or the network does not take these settings.
        """
        super().__init__(config, image_size)
        self.network = _create(config, load)
        card = resolve_model_data_config(self.network)
        self.side: int = config.input_size or card["input_size"][-1]
        self.interpolation = InterpolationMode(card["interpolation"])
        self.register_buffer("mean", torch.tensor(config.mean or card["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or card["std"]).view(3, 1, 1), persistent=False)
        if load and config.weights not in ("pretrained", "none") and not _on_hub(config.weights):
            self._load(config.weights)
        self.license = self.network.pretrained_cfg.get("license") or ""
        # Tokens before the patches; timm's networks without such tokens lack the attribute.
        self._prefix: int = getattr(self.network, "num_prefix_tokens", 0)
        self.network.eval()
        with torch.no_grad():
            features = self.network.forward_features(torch.zeros(1, 3, self.side, self.side, device=self.mean.device))
            self.width = self._pool(features).shape[1]
            self.grid = self._grid(features)

    @classmethod
    def catalog(cls) -> Iterator[CatalogEntry]:
        """List the presets; every other network of timm is available by its name."""
        for name, preset in PRESETS.items():
            card = timm.get_pretrained_cfg(preset.model)
            if card is None:
                yield CatalogEntry(f"preset: {name}", preset.width, 0, preset.millions, "", "needs a newer timm")
                continue
            side = preset.input_size or card.input_size[-1]
            weights = "here" if _is_downloaded(card) else "to be downloaded"
            yield CatalogEntry(f"preset: {name}", preset.width, side, preset.millions, card.license or "", weights)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [0, 1] to the pooled features `(B, width)`."""
        return self._pool(self.network.forward_features(self._prepare(image)))

    def patch_features(self, image: Tensor) -> Tensor:
        """Return features on `grid`, row by row, `(B, N, D')`, without prefix tokens.

        Raises:
            UserError: the network has no features on a grid.
        """
        if self.grid is None:
            raise UserError(f"encoder.model {self.config.model} has no features on a grid")
        features: Tensor = self.network.forward_features(self._prepare(image))
        if features.ndim == 3:
            return features[:, self._prefix :]
        return features.flatten(1, 2) if self._channels_last(features) else features.flatten(2).transpose(1, 2)

    def _pool(self, features: Tensor) -> Tensor:
        return self.network.forward_head(features, pre_logits=True).flatten(1)

    def _channels_last(self, features: Tensor) -> bool:
        return features.shape[-1] == self.network.num_features != features.shape[1]

    def _grid(self, features: Tensor) -> tuple[int, int] | None:
        if features.ndim == 4:
            rows, columns = features.shape[1:3] if self._channels_last(features) else features.shape[2:]
            return rows, columns
        count = features.shape[1] - self._prefix if features.ndim == 3 else 0
        side = math.isqrt(count)  # inputs are square
        return (side, side) if side * side == count > 0 else None

    def _prepare(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.side, self.side):
            image = V.resize(image, [self.side, self.side], self.interpolation, antialias=True).clamp(0, 1)
        return (image - self.mean) / self.std

    def _load(self, path: str) -> None:
        tensors = _as_timm_loads(self.config.model, self.network, pretrained.read_weights(path))
        expected = self.network.state_dict()
        # A file may hold a classifier, which is not part of an encoder.
        extra = [key for key in tensors if key not in expected and key.split(".")[0] in ("head", "fc", "classifier")]
        pretrained.fit(self.network, {key: value for key, value in tensors.items() if key not in extra}, path)


def _create(config: TimmModelConfig, load: bool) -> Any:
    """Build the network without its classifier."""
    name = config.weights if _on_hub(config.weights) else config.model
    arguments: dict[str, Any] = {"num_classes": 0, **config.options}
    if config.pooling:
        arguments["global_pool"] = config.pooling
        # timm moves the norm behind a mean, under a name that the weights of other poolings do not have.
        is_mean = config.pooling == "avg" and "fc_norm" not in arguments
        if is_mean and NORM_BEHIND_POOLING in _names(name, arguments) - _names(name, {"num_classes": 0}):
            arguments["fc_norm"] = False
    download = load and (config.weights == "pretrained" or _on_hub(config.weights))
    # Networks that take inputs of any size have no such argument.
    attempts: list[dict[str, Any]] = [{"img_size": config.input_size}, {}] if config.input_size else [{}]
    for size in attempts:
        try:
            network: Any = timm.create_model(name, pretrained=download, **arguments, **size)
            break
        except (TypeError, AssertionError, ValueError) as error:
            takes_any_size = isinstance(error, TypeError) and "img_size" in str(error)
            if not (size and takes_any_size):
                raise UserError(f"encoder.model {name} does not take these settings ({error})") from None
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights of {name} are unavailable ({str(error).splitlines()[0]}): "
                f"download them elsewhere and give their path as encoder.weights"
            ) from None
    if arguments["num_classes"]:
        network.reset_classifier(0)
    return network


def _names(model: str, arguments: dict[str, Any]) -> set[str]:
    """Return the names of a network's tensors; none where it does not take the arguments."""
    try:
        with torch.device("meta"):
            return set(timm.create_model(model, pretrained=False, **arguments).state_dict())
    except (TypeError, AssertionError, ValueError):
        return set()


def _as_timm_loads(model: str, network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a file, and resize positions, as timm does with what it downloads of this family."""
    if _on_hub(model):
        return tensors
    module = sys.modules[timm.models.model_entrypoint(model.split(".")[0]).__module__]
    convert = vars(module).get("checkpoint_filter_fn")
    try:
        return tensors if convert is None else convert(tensors, network)
    except Exception:  # renaming a file of another network trips over whatever it lacks: `fit` says what
        return tensors


def _on_hub(place: str) -> bool:
    return place.startswith("hf-hub:") and not Path(place).exists()


def _is_downloaded(card: Any) -> bool:
    """Whether the weights that a card names are in the cache of the hub or of torch."""
    if card.hf_hub_id:
        files = (card.hf_hub_filename, "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(card.hf_hub_id, name), str) for name in files if name)
    return bool(card.url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(card.url).name).is_file()


def _close(name: str, names: Iterable[str]) -> str:
    """Return a hint with the nearest of many names: all of them would fill a screen."""
    return nearest(name, difflib.get_close_matches(name, names, n=5))
