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


@pytest.fixture
def no_draws(monkeypatch):
    """Let nobody draw initial weights: on the meta device, which has no numbers, it takes most of the time."""
    for name in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *arguments, **options: tensor)


@pytest.mark.usefixtures("no_draws")
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


def is_of_classifier(key):
    return key.split(".")[0] in ("head", "fc", "classifier")


@pytest.mark.usefixtures("no_draws")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALLEST.values() else pytest.mark.slow) for name in PRESETS]
)
def test_the_published_weights_fill_every_tensor(name):
    model = PRESETS[name].model
    if timm.get_pretrained_cfg(model) is None:
        pytest.skip(f"timm {timm.__version__} does not know {model} yet")
    with torch.device("meta"):
        encoder = TimmModel(TimmModelConfig(preset=name, weights="none"), 32)
        published = timm.create_model(model).state_dict()
    ours = encoder.network.state_dict()
    assert ours.keys() <= published.keys()
    assert [key for key in published.keys() - ours.keys() if not is_of_classifier(key)] == []
    moved = [key for key, value in ours.items() if value.shape != published[key].shape]
    assert moved in ([], ["pos_embed"])  # timm resizes positions


@pytest.mark.parametrize("name", [pytest.param("mae_vitb16", marks=pytest.mark.slow), "dinov2_vits14"])
def test_a_file_of_the_published_weights_loads(name, tmp_path):
    with torch.device("meta"):
        published = timm.create_model(PRESETS[name].model).state_dict()
    # One number on the disk for each tensor.
    content = {key: torch.full((1,), 0.5).expand(value.shape) for key, value in published.items()}
    torch.save({"model": content}, tmp_path / "weights.pth")
    encoder = TimmModel(TimmModelConfig(preset=name, weights=str(tmp_path / "weights.pth")), 32)
    for key, value in encoder.network.state_dict().items():
        torch.testing.assert_close(value, torch.full_like(value, 0.5), msg=key)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_every_pooling_takes_the_weights_of_every_other(pooling, tmp_path):
    published = timm.create_model("vit_tiny_patch16_224", img_size=32)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    config = {"model": "vit_tiny_patch16_224", "input_size": 32, "pooling": pooling}
    encoder = TimmModel(TimmModelConfig(weights=str(tmp_path / "weights.pth"), **config), 32).eval()
    x = published.eval().forward_features((torch.ones(1, 3, 32, 32) - encoder.mean) / encoder.std)
    expected = x[:, 1:].mean(1) if pooling == "avg" else x[:, 0]
    torch.testing.assert_close(encoder(torch.ones(1, 3, 32, 32)), expected)


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
