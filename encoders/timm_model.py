"""Any network of timm as a frozen encoder, with the preprocessing of its own model card."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import Field, PositiveInt, field_validator, model_validator
from rcg.encoders._presets import PRESETS
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from rcg.config import EncoderConfig
from rcg.core import pretrained as weights
from rcg.core.contracts import Listing
from rcg.core.errors import UserError, nearest
from rcg.core.registry import ENCODERS

Plain = bool | int | float | str


class TimmModelConfig(EncoderConfig):
    """A timm network; constants, size and interpolation are its card's unless given here."""

    name: str = "timm_model"
    preset: Annotated[str | None, Field(exclude=True)] = None
    """A short name with its settings (`dinov2_vitb14`); tools/list_encoders.py lists them."""
    model: str
    """timm's name, tag included (`vit_base_patch16_224.dino`)."""
    weights: str = "pretrained"
    """`pretrained`, a hub id (`hf-hub:owner/name`), a local .safetensors or .pth file, or `none`."""
    input_size: PositiveInt | None = None
    """Side that images are resized to; none: the card's."""
    pooling: Literal["token", "avg", "map"] | None = None
    """How features become one vector: class token, mean, attention pooling; none: the network's own way."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel; none: the card's."""
    std: tuple[float, float, float] | None = None
    """Deviation of each channel; none: the card's."""
    feature: Literal["backbone"] = "backbone"
    options: dict[str, Plain] = {}  # noqa: RUF012 - frozen with the model
    """Further arguments of the network's constructor, such as pad_type: same."""

    @model_validator(mode="before")
    @classmethod
    def _follow_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("preset") is None:
            return value
        name = value["preset"]
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; {_close(str(name), PRESETS)}")
        preset = PRESETS[name]
        if value.get("model", preset.model) != preset.model:
            raise ValueError(f"preset {name} is {preset.model}, but model is {value['model']}: give one of the two")
        settings = {"model": preset.model, "input_size": preset.input_size, "pooling": preset.pooling}
        return {**{key: setting for key, setting in settings.items() if setting is not None}, **value}

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        if not name.startswith("hf-hub:") and not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm has no model {name!r}; {_close(name, timm.list_models())}")
        return name


@ENCODERS.register
class TimmModel(nn.Module):
    """Maps images `(B, 3, H, W)` in [0, 1] to timm's pooled features `(B, width)`.

    Attributes:
        width: D of the representation.
        side: side of the square that the network sees.
        grid: rows and columns of `tokens`, None where the network has none.
        license: license of the published weights, as their card says.

    Raises:
        UserError: the weights cannot be had or do not fit, or the network has no such pooling.
    """

    Config = TimmModelConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: TimmModelConfig, image_size: int | None = None, load: bool = True) -> None:
        super().__init__()
        self.config = config
        self.network = _create(config, load)
        card = resolve_model_data_config(self.network)
        self.side = config.input_size or card["input_size"][-1]
        self.interpolation = InterpolationMode(card["interpolation"])
        self.register_buffer("mean", torch.tensor(config.mean or card["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or card["std"]).view(3, 1, 1), persistent=False)
        if load and config.weights not in ("pretrained", "none") and not _on_hub(config.weights):
            self._load(config.weights)
        self.license: str = self.network.pretrained_cfg.get("license") or ""
        self.network.eval()
        with torch.no_grad():
            features = self.network.forward_features(torch.zeros(1, 3, self.side, self.side, device=self.mean.device))
            self.width = self._pool(features).shape[1]
            self.grid = self._grid(features)

    @classmethod
    def catalog(cls) -> Iterator[Listing]:
        """List the presets; every other network of timm can be had by its name."""
        for name, preset in PRESETS.items():
            card = timm.get_pretrained_cfg(preset.model)
            if card is None:
                yield Listing(f"preset: {name}", preset.width, 0, preset.millions, "", "needs a newer timm")
                continue
            side = preset.input_size or card.input_size[-1]
            here = "here" if _downloaded(card) else "to be downloaded"
            yield Listing(f"preset: {name}", preset.width, side, preset.millions, card.license or "", here)

    def forward(self, image: Tensor) -> Tensor:
        """Return the pooled features `(B, width)`."""
        return self._pool(self.network.forward_features(self._prepare(image)))

    def tokens(self, image: Tensor) -> Tensor:
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

    @property
    def _prefix(self) -> int:
        """Number of tokens before the patches."""
        return getattr(self.network, "num_prefix_tokens", 0)

    def _pool(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.network.forward_head(features, pre_logits=True)
        return pooled.flatten(1)

    def _channels_last(self, features: Tensor) -> bool:
        return features.shape[-1] == self.network.num_features != features.shape[1]

    def _grid(self, features: Tensor) -> tuple[int, int] | None:
        if features.ndim == 4:
            rows, columns = features.shape[1:3] if self._channels_last(features) else features.shape[2:]
            return rows, columns
        if features.ndim == 3:
            count = features.shape[1] - self._prefix
            side = math.isqrt(count)  # inputs are square
            return (side, side) if side * side == count > 0 else None
        return None

    def _prepare(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.side, self.side):
            image = V.resize(image, [self.side, self.side], self.interpolation, antialias=True).clamp(0, 1)
        return (image - self.mean) / self.std

    def _load(self, path: str) -> None:
        tensors = weights.state_dict(weights.read(path))
        known = self.network.state_dict()
        # The classifier is not part of an encoder: a file may hold it or not.
        extra = [key for key in tensors if key not in known and key.split(".")[0] in ("head", "fc", "classifier")]
        weights.fit(self.network, {key: value for key, value in tensors.items() if key not in extra}, path)


def _create(config: TimmModelConfig, load: bool) -> Any:
    """Build the network without its classifier."""
    name = config.weights if _on_hub(config.weights) else config.model
    arguments: dict[str, Any] = {"num_classes": 0, **config.options}
    if config.pooling:
        arguments["global_pool"] = config.pooling
    pretrained = load and (config.weights == "pretrained" or _on_hub(config.weights))
    attempts: list[dict[str, Any]] = [{"img_size": config.input_size}, {}] if config.input_size else [{}]
    for sized in attempts:
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, **arguments, **sized)
            break
        except TypeError as error:
            if not (sized and "img_size" in str(error)):
                raise UserError(f"encoder.model {name} does not take these settings ({error})") from None
        except (AssertionError, ValueError) as error:
            raise UserError(f"encoder.model {name} does not take these settings ({error})") from None
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights of {name} could not be had ({str(error).splitlines()[0]}): "
                f"download them elsewhere and give their path as encoder.weights"
            ) from None
    if arguments["num_classes"]:
        network.reset_classifier(0)
    return network


def _on_hub(place: str) -> bool:
    return place.startswith("hf-hub:") and not Path(place).exists()


def _downloaded(card: Any) -> bool:
    """Whether the weights that a card names lie in the caches of the hub or of torch."""
    if card.hf_hub_id:
        files = (card.hf_hub_filename, "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(card.hf_hub_id, name), str) for name in files if name)
    return bool(card.url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(card.url).name).is_file()


def _close(name: str, known: Iterable[str]) -> str:
    """Name the nearest of many: all of them would fill a screen."""
    return nearest(name, difflib.get_close_matches(name, known, n=5))
