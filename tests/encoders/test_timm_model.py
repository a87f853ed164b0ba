"""Networks of timm from local files: their own preprocessing, poolings, grids, and mistakes."""

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from rcg.core.errors import UserError
from rcg.encoders.timm_model import TimmModel, TimmModelConfig


def encoder(model="resnet10t", **config):
    return TimmModel(TimmModelConfig(model=model, **{"weights": "none", **config}), 32).eval()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "wrapped.pth"])
def test_a_local_file_gives_the_features_of_the_network_that_wrote_it(suffix, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(network.state_dict(), path)
    elif suffix == "pth":
        torch.save(network.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    image = torch.rand(2, 3, 176, 176)
    card = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(card[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features((image - mean) / std), pre_logits=True)
        found = encoder(weights=str(path), input_size=176)(image)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("model", "pooling", "options"),
    [
        ("vit_tiny_patch16_224", None, {}),
        ("vit_tiny_patch16_224", "avg", {}),
        ("vit_tiny_patch16_224", "map", {}),
        ("vit_tiny_patch16_224", "token", {"reg_tokens": 4}),
        ("resnet10t", "avg", {}),
        ("mobilenetv2_100", None, {"pad_type": "same"}),
    ],
)
@torch.no_grad()
def test_every_pooling_gives_one_vector_and_a_grid_without_prefix_tokens(model, pooling, options):
    network = encoder(model, pooling=pooling, options=options, input_size=64)
    image = torch.rand(2, 3, 40, 50)
    assert network(image).shape == (2, network.width)
    tokens = network.patch_features(image)
    side = 4 if model.startswith("vit") else 2
    assert tokens.shape[:2] == (2, side * side)


@torch.no_grad()
def test_poolings_differ():
    torch.manual_seed(0)
    image, outputs = torch.rand(1, 3, 64, 64), []
    for pooling in ("token", "avg"):
        torch.manual_seed(1)
        outputs.append(encoder("vit_tiny_patch16_224", pooling=pooling, input_size=64)(image))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@torch.no_grad()
def test_given_constants_replace_the_cards():
    torch.manual_seed(0)
    plain = encoder(input_size=64)
    torch.manual_seed(0)
    other = encoder(input_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(other.mean.flatten(), torch.full((3,), 0.5))
    assert (plain(image) - other(image)).abs().max() > 1e-4


def test_a_name_that_timm_does_not_know_is_answered_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'resnet50'"):
        TimmModelConfig(model="resnet5O")


def test_a_pooling_that_the_network_lacks_is_refused():
    with pytest.raises(UserError, match="does not take these settings"):
        encoder("resnet10t", options={"img_sise": 3})


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="does not fit VisionTransformer: it lacks cls_token"):
        encoder("vit_tiny_patch16_224", weights=str(tmp_path / "r.safetensors"))


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(UserError, match=r"are unavailable \(no network\): download them elsewhere"):
        encoder(weights="pretrained")
