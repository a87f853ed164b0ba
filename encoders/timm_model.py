"""Any network of timm as a frozen encoder, with the preprocessing of its own model card."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import PositiveInt, field_validator
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from rcg import weights
from rcg.config import EncoderConfig
from rcg.errors import UserError, nearest
from rcg.registry import ENCODERS

Plain = bool | int | float | str


class TimmModelConfig(EncoderConfig):
    """A timm network; constants, size and interpolation are its card's unless given here."""

    name: str = "timm_model"
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
    options: dict[str, Plain] = {}  # noqa: RUF012 - frozen with the model
    """Further arguments of the network's constructor, such as pad_type: same."""

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        if not name.startswith("hf-hub:") and not timm.is_model(name.split(".")[0]):
            close = difflib.get_close_matches(name, timm.list_models(), n=5)  # all of them would fill a screen
            raise ValueError(f"timm has no model {name!r}; {nearest(name, close)}")
        return name


@ENCODERS.register
class TimmModel(nn.Module):
    """Maps images `(B, 3, H, W)` in [0, 1] to timm's pooled features `(B, width)`.

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
        with torch.no_grad():
            training = self.network.training
            self.network.eval()
            self.width = self(torch.zeros(1, 3, self.side, self.side, device=self.mean.device)).shape[1]
            self.network.train(training)

    def forward(self, image: Tensor) -> Tensor:
        """Return the pooled features `(B, width)`."""
        features = self.network.forward_features(self._prepare(image))
        pooled: Tensor = self.network.forward_head(features, pre_logits=True)
        return pooled.flatten(1)

    def tokens(self, image: Tensor) -> Tensor:
        """Return features on a grid, row by row, `(B, N, D')`, without prefix tokens."""
        features: Tensor = self.network.forward_features(self._prepare(image))
        if features.ndim == 3:
            return features[:, getattr(self.network, "num_prefix_tokens", 0) :]
        if features.ndim == 4:
            channels_last = features.shape[-1] == self.network.num_features != features.shape[1]
            return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
        raise UserError(f"encoder.model {self.config.model} has no features on a grid")

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
