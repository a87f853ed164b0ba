"""Every preset builds what it states; the smallest of each family runs for real."""

import pytest
import timm
import torch
from pydantic import ValidationError

from rcg.encoders._presets import PRESETS
from rcg.encoders.timm_model import TimmModel, TimmModelConfig

SMALLEST = {}
for name, preset in PRESETS.items():
    family = name.split("_")[0]
    if family not in SMALLEST or preset.millions < PRESETS[SMALLEST[family]].millions:
        SMALLEST[family] = name
RUN = [pytest.param(name, marks=pytest.mark.slow if PRESETS[name].millions > 100 else ()) for name in SMALLEST.values()]


@pytest.mark.parametrize("name", PRESETS)
def test_width_grid_and_size_are_as_stated_and_the_license_is_known(name):
    preset = PRESETS[name]
    if timm.get_pretrained_cfg(preset.model) is None:
        pytest.skip(f"timm {timm.__version__} does not know {preset.model} yet")
    with torch.device("meta"):
        encoder = TimmModel(TimmModelConfig(preset=name, weights="none"), 32)
    assert (encoder.width, encoder.grid) == (preset.width, (preset.grid, preset.grid))
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == preset.millions
    assert encoder.license


@pytest.mark.parametrize("name", RUN)
@torch.inference_mode()
def test_the_smallest_of_each_family_runs(name):
    if timm.get_pretrained_cfg(PRESETS[name].model) is None:
        pytest.skip(f"timm {timm.__version__} does not know it yet")
    encoder = TimmModel(TimmModelConfig(preset=name, weights="none"), 32).eval()
    image = torch.rand(1, 3, 64, 64)
    rep, tokens = encoder(image), encoder.patch_features(image)
    assert rep.shape == (1, PRESETS[name].width)
    assert tokens.shape[:2] == (1, PRESETS[name].grid ** 2)
    assert torch.isfinite(rep).all()
    assert torch.isfinite(tokens).all()


def test_a_preset_sets_what_is_easy_to_get_wrong_and_can_be_overridden():
    config = TimmModelConfig(preset="dinov2_vits14")
    assert (config.model, config.input_size) == ("vit_small_patch14_dinov2.lvd142m", 224)
    assert TimmModelConfig(preset="dinov3_vits16").pooling == "token"
    assert TimmModelConfig(preset="dinov2_vits14", input_size=518).input_size == 518
    assert TimmModelConfig.model_validate(config.model_dump()) == config.model_copy(update={"preset": None})


def test_a_misspelt_preset_and_a_second_model_are_refused():
    with pytest.raises(ValidationError, match="there is no preset 'dinov2_vits15'; did you mean 'dinov2_vits14'"):
        TimmModelConfig(preset="dinov2_vits15")
    with pytest.raises(ValidationError, match="give one of the two"):
        TimmModelConfig(preset="dinov2_vits14", model="resnet18")
