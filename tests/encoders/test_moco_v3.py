"""MoCo v3 against the published encoder's recorded outputs, through the path that published files take."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from rcg.core import checkpoint
from rcg.core.checkpoint import Facts
from rcg.core.errors import UserError
from rcg.encoders.moco_v3 import MoCoV3, MoCoV3Config, _repair, default_patch, sincos_positions
from rcg.encoding.encoder import encoder_id, encoder_part, restore_encoder
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from tests.parity import DATA, recorded, state

TINY = {"arch": "vit_small", "width": 32, "depth": 2, "heads": 4, "patch": 14, "input_size": 56}
TINY |= {"projector_hidden": 48, "projector_dim": 16}
SIZE = 64
SHARED = Path(__file__).parents[2].parent / "shared" / "parity" / "keys"


def tiny(path, feature="projector"):
    return MoCoV3(MoCoV3Config(**TINY, weights=str(path), feature=feature), SIZE).eval()


def published(folder):
    """Write the recorded encoder in the layout of a MoCo v3 checkpoint, with what has to be left out of it."""
    weights = {f"module.base_encoder.{key}": value for key, value in state("moco_vit_tiny").items()}
    weights |= {"module.momentum_encoder.cls_token": torch.zeros(1), "module.predictor.0.weight": torch.zeros(1)}
    path = folder / "vit-tiny-300ep.pth.tar"
    torch.save({"epoch": 300, "arch": "vit_tiny", "state_dict": weights, "optimizer": {}}, path)
    return path


def test_class_token_projector_and_representation_equal_the_published_ones(tmp_path):
    _, tensors = recorded("moco_vit_tiny")
    path, image = published(tmp_path), tensors["in/image01"]
    close = {"atol": 1e-5, "rtol": 1e-5}
    projected = Representation(tiny(path), Transform("per_sample"))
    torch.testing.assert_close(projected.encode(image), tensors["out/proj"], **close)
    torch.testing.assert_close(projected(image), tensors["out/rep"], **close)
    backbone = Representation(tiny(path, "backbone"), Transform("per_sample"))
    torch.testing.assert_close(backbone.encode(image), tensors["out/cls_feature"], **close)
    torch.testing.assert_close(backbone(image), tensors["out/rep_noproj"], **close)


def test_a_file_in_the_original_format_loads():
    encoder = tiny(DATA / "ckpt_moco_tiny.pth.tar")
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 16)


def test_positions_follow_their_formula():
    positions = sincos_positions(4, 16)[0]
    assert positions.shape == (17, 16)
    assert positions[0].abs().max() == 0
    i, j, k = 2, 3, 1
    omega = 10_000 ** (-k / 4)
    token = positions[1 + i * 4 + j]
    expected = [f(axis * omega) for axis in (i, j) for f in (math.sin, math.cos)]
    torch.testing.assert_close(token[k::4], torch.tensor(expected))


def test_the_misnamed_keys_of_the_published_large_model_are_repaired():
    assert _repair("blocks.13.norm13.weight") == "blocks.13.norm1.weight"
    assert _repair("blocks.14.norm14.bias") == "blocks.14.norm2.bias"
    assert _repair("blocks.13.mlp.fc13.weight") == "blocks.13.mlp.fc1.weight"
    assert _repair("blocks.14.mlp.fc14.weight") == "blocks.14.mlp.fc2.weight"
    assert _repair("blocks.13.norm1.weight") == "blocks.13.norm1.weight"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="lists of the published files' keys are not here")
@pytest.mark.parametrize("arch", ["small", "base", "large"])
def test_a_file_with_the_keys_of_the_full_model_fills_every_tensor(arch, tmp_path):
    content = {}
    for line in (SHARED / f"enc_mocov3_vit_{arch}.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, _ = line.split("\t")
            sizes = [int(n) for n in shape.strip("()").split(",") if n.strip()]
            one = torch.tensor(2 if key.endswith("num_batches_tracked") else 2.0)  # one number on the disk
            content[f"module.base_encoder.{key}"] = one.expand(sizes)
    if arch == "large":  # as its file has them
        for ours, published in (("13.norm1", "13.norm13"), ("13.mlp.fc1", "13.mlp.fc13"), ("14.norm2", "14.norm14")):
            for kind in ("weight", "bias"):
                key = f"module.base_encoder.blocks.{ours}.{kind}"
                content[key.replace(ours, published)] = content.pop(key)
    torch.save({"state_dict": content}, tmp_path / "full.pth.tar")
    encoder = MoCoV3(MoCoV3Config(arch=f"vit_{arch}", weights=str(tmp_path / "full.pth.tar")), SIZE)
    for key, value in encoder.state_dict().items():
        assert key.endswith("num_batches_tracked") or (value == 2).all(), key


def test_a_file_of_another_architecture_says_what_does_not_fit(tmp_path):
    path = published(tmp_path)
    with pytest.raises(UserError, match=r"vit-tiny-300ep.pth.tar does not fit MoCoV3: it lacks trunk.blocks.2"):
        MoCoV3(MoCoV3Config(**TINY | {"depth": 3}, weights=str(path)), SIZE)
    with pytest.raises(UserError, match=r"differs: head.0.weight is \(48, 32\) instead of \(50, 32\)"):
        MoCoV3(MoCoV3Config(**TINY | {"projector_hidden": 50}, weights=str(path)), SIZE)


def test_missing_truncated_and_pickled_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no weight file"):
        tiny(tmp_path / "none.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(published(tmp_path).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken\.pth is truncated"):
        tiny(broken)
    cut = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.safetensors is truncated"):
        tiny(cut)
    code = tmp_path / "code.pth"
    torch.save({"state_dict": {}, "hook": os.system}, code)
    with pytest.raises(UserError, match="pickled code is never loaded"):
        tiny(code)


def test_training_leaves_positions_and_patches_alone_and_moves_the_rest():
    encoder = MoCoV3(MoCoV3Config(arch="vit_tiny", width=32, depth=1, heads=2, projector_hidden=8, projector_dim=4), 16)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"trunk.pos_embed", "trunk.patch_embed.proj.weight", "trunk.patch_embed.proj.bias"}


@pytest.mark.parametrize(("config", "said"), [({"patch": 5}, "patches of 5"), ({"width": 30}, "width 30")])
def test_sizes_that_do_not_fit_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        MoCoV3(MoCoV3Config(arch="vit_tiny", **config), 32)


def published_resnet(folder):
    """Write a ResNet-50 as its authors published it: by the names and shapes of their file, numbers at random."""
    torch.manual_seed(0)
    trunk = timm.create_model("resnet50", num_classes=0).state_dict()
    sizes = {"0": (4096, 2048), "3": (256, 4096)}
    projector = {f"fc.{layer}.weight": torch.randn(shape) / 64 for layer, shape in sizes.items()}
    for layer, width in (("1", 4096), ("4", 256)):
        statistics = {"running_mean": torch.zeros(width), "running_var": torch.ones(width)}
        projector |= {f"fc.{layer}.{name}": value for name, value in statistics.items()}
        projector[f"fc.{layer}.num_batches_tracked"] = torch.tensor(7)
    projector |= {"fc.1.weight": torch.ones(4096), "fc.1.bias": torch.zeros(4096)}
    base = {f"module.base_encoder.{key}": value for key, value in (trunk | projector).items()}
    other = {"module.momentum_encoder.conv1.weight": torch.zeros(1), "module.predictor.0.weight": torch.zeros(1)}
    path = folder / "r-50-1000ep.pth.tar"
    torch.save({"epoch": 1000, "arch": "resnet50", "state_dict": base | other, "optimizer": {}, "scaler": {}}, path)
    return path, trunk, projector


@torch.no_grad()
def test_the_published_resnet_loads_with_its_projector_of_two_layers(tmp_path):
    path, trunk, projector = published_resnet(tmp_path)
    config = MoCoV3Config(arch="resnet50", weights=str(path), input_size=96)
    encoder = MoCoV3(config, SIZE).eval()
    assert encoder.config.projector_layers == 2
    for key, value in trunk.items():
        assert torch.equal(encoder.state_dict()[f"trunk.{key}"], value), key
    image = torch.rand(2, 3, 96, 96)
    network = timm.create_model("resnet50", num_classes=0).eval()
    network.load_state_dict(trunk)
    hidden = (network((image - encoder.mean) / encoder.std) @ projector["fc.0.weight"].T).relu() / math.sqrt(1 + 1e-5)
    expected = hidden @ projector["fc.3.weight"].T / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(encoder(image), expected, atol=1e-4, rtol=1e-3)
    backbone = MoCoV3(config.model_copy(update={"feature": "backbone"}), SIZE).eval()
    torch.testing.assert_close(backbone(image), network((image - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-4)


SMALL = {"arch": "resnet18", "width": 4, "depth": 1, "projector_hidden": 8, "projector_dim": 6}


@pytest.mark.parametrize("layers", [None, 2, 3])
def test_an_encoder_of_a_run_keeps_its_projector_when_it_is_loaded_as_weights(layers, tmp_path):
    encoder = MoCoV3(MoCoV3Config(**SMALL, projector_layers=layers), 32)
    assert encoder.config.projector_layers == (layers or 3)
    part = encoder_part(encoder, Facts(image_size=32))
    assert restore_encoder(part).config == encoder.config
    checkpoint.save(tmp_path / "model.safetensors", part)
    again = MoCoV3(MoCoV3Config(**SMALL, weights=str(tmp_path / "model.safetensors"), input_size=32), 32)
    for key, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_an_encoder_that_was_saved_before_there_was_a_choice_has_three_layers():
    part = encoder_part(MoCoV3(MoCoV3Config(**SMALL), 32), Facts(image_size=32))
    old = {key: value for key, value in part.config.items() if key != "projector_layers"}
    assert encoder_id(restore_encoder(replace(part, config=old))) == encoder_id(restore_encoder(part))


@pytest.mark.parametrize("side", [16, 20, 28, 30, 32, 36, 49, 64, 65, 96, 100, 128, 224, 256])
def test_the_default_patch_divides_every_side(side):
    patch = default_patch(side)
    assert side % patch == 0
    if side in (16, 32, 64, 96, 128, 224, 256):
        assert patch == (16 if side > 64 else side // 8)
    config = MoCoV3Config(arch="vit_tiny", width=32, depth=1, heads=2, projector_hidden=8, projector_dim=4)
    with torch.device("meta"):
        MoCoV3(config, side)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", ""])
@pytest.mark.parametrize("wrapper", ["model", "model_state_dict", "state_dict"])
def test_a_trunk_without_its_projector_serves_the_backbone(prefix, wrapper, tmp_path):
    trunk = MoCoV3(MoCoV3Config(**SMALL), 32).trunk
    path = tmp_path / "trunk.pth"
    torch.save({wrapper: {f"{prefix}{key}": value for key, value in trunk.state_dict().items()}}, path)
    config = {**SMALL, "weights": str(path), "input_size": 32}
    encoders = [MoCoV3(MoCoV3Config(**config, feature="backbone"), 32).eval() for _ in range(2)]
    assert encoder_id(encoders[0]) == encoder_id(encoders[1])
    for key, value in trunk.state_dict().items():
        assert torch.equal(encoders[0].state_dict()[f"trunk.{key}"], value), key
    with pytest.raises(UserError, match=r"holds no projection head: set encoder\.feature=backbone"):
        MoCoV3(MoCoV3Config(**config), 32)
    torch.save({wrapper: {f"{prefix}other.{key}": value for key, value in trunk.state_dict().items()}}, path)
    with pytest.raises(UserError, match=r"lacks trunk\..*; it has also trunk\.other\."):
        MoCoV3(MoCoV3Config(**config, feature="backbone"), 32)
