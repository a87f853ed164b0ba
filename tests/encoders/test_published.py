"""The layouts in which SSL encoders are published, against recorded outputs and lists of keys."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rcg.core.errors import UserError
from rcg.encoders.data2vec import Data2Vec, Data2VecConfig
from rcg.encoders.deit import DeiT, DeiTConfig
from rcg.encoders.dino import DINO, DINOConfig
from rcg.encoders.ibot import IBOT, IBOTConfig
from rcg.encoders.msn import MSN, MSNConfig
from rcg.encoders.swav import SwAV, SwAVConfig
from rcg.encoders.vicreg import VICReg, VICRegConfig
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from tests.parity import recorded, state

SIZE = 32
KEYS = Path(__file__).parents[2].parent / "shared" / "parity" / "keys"
TINY = {"width": 32, "depth": 2, "heads": 4, "patch": 14, "input_size": 56}
HEAD = {"projector_hidden": 48, "projector_dim": 16}


def save(folder, content):
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return str(path)


def as_recorded(encoder, tensors):
    """Undo the encoder's own normalization, so that its trunk sees the recorded input."""
    image = tensors["in/encoder_input"] * encoder.std + encoder.mean
    return encoder.eval()(image)


def distilled(name):
    """Return a full checkpoint in the layout of DINO and iBOT, with what has to be left out of it."""
    bare = state(f"{name}_vit_tiny")
    teacher = {(key if key.startswith("head.") else f"backbone.{key}"): value for key, value in bare.items()}
    prototypes = {"head.last_layer.weight_g": torch.ones(9, 1), "head.last_layer.weight_v": torch.ones(9, 16)}
    student = {f"module.{key}": torch.zeros(1) for key in teacher}
    return {"student": student, "teacher": teacher | prototypes, "epoch": 100, "optimizer": {}}


@pytest.mark.parametrize(("name", "network", "config"), [("dino", DINO, DINOConfig), ("ibot", IBOT, IBOTConfig)])
def test_teacher_and_head_equal_the_published_ones(name, network, config, tmp_path):
    _, tensors = recorded(f"{name}_vit_tiny")
    path = save(tmp_path, distilled(name))
    token = network(config(**TINY, weights=path), SIZE)
    head = network(config(**TINY, **HEAD, weights=path, feature="projector"), SIZE)
    torch.testing.assert_close(as_recorded(token, tensors), tensors["out/cls_feature"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(as_recorded(head, tensors), tensors["out/proj"], atol=1e-5, rtol=1e-5)


def test_a_file_with_the_backbone_alone_serves_the_token_and_says_that_it_has_no_head(tmp_path):
    bare = {key: value for key, value in state("ibot_vit_tiny").items() if not key.startswith("head.")}
    path = save(tmp_path, {"state_dict": bare})
    assert IBOT(IBOTConfig(**TINY, weights=path), SIZE).eval()(torch.rand(1, 3, 56, 56)).shape == (1, 32)
    with pytest.raises(UserError, match=r"holds no projection head: set encoder.feature=backbone"):
        IBOT(IBOTConfig(**TINY, **HEAD, weights=path, feature="projector"), SIZE)


def test_deit_token_logits_and_representation_equal_the_published_ones(tmp_path):
    _, tensors = recorded("deit_vit_tiny")
    path = save(tmp_path, {"model": state("deit_vit_tiny")})
    token = DeiT(DeiTConfig(**TINY, weights=path), SIZE)
    logits = DeiT(DeiTConfig(**TINY, classes=10, weights=path, feature="projector"), SIZE)
    torch.testing.assert_close(as_recorded(token, tensors), tensors["out/cls_feature"], atol=1e-5, rtol=1e-5)
    expected = tensors["out/logits"]
    torch.testing.assert_close(as_recorded(logits, tensors), expected, atol=1e-5, rtol=1e-5)
    z = Representation(logits, Transform("per_sample"))(tensors["in/encoder_input"] * logits.std + logits.mean)
    standardized = (expected - expected.mean(1, keepdim=True)) / expected.std(1, keepdim=True)
    torch.testing.assert_close(z, standardized, atol=1e-5, rtol=1e-5)


def shapes(encoder):
    names = {key.removeprefix("trunk."): tuple(value.shape) for key, value in encoder.state_dict().items()}
    return {key: shape for key, shape in names.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.shared
@pytest.mark.skipif(not KEYS.is_dir(), reason="lists of the published files' keys are not here")
@pytest.mark.parametrize(
    ("name", "network", "config"), [("dino", DINO, DINOConfig), ("ibot", IBOT, IBOTConfig), ("deit", DeiT, DeiTConfig)]
)
def test_files_with_the_keys_of_the_full_models_load(name, network, config, tmp_path):
    listed = {}
    for line in (KEYS / f"enc_{name}_vit_base.txt").read_text().splitlines():
        if not line.startswith("#"):
            key, shape, _ = line.split("\t")
            listed[key] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    with torch.device("meta"):
        assert shapes(network(config(weights="none", feature="projector"), SIZE)) == listed
    tensors = {key: torch.zeros(1).expand(shape) for key, shape in listed.items()}  # one number on the disk
    teacher = {(key if key.startswith("head.") else f"backbone.{key}"): value for key, value in tensors.items()}
    path = save(tmp_path, {"model": tensors} if name == "deit" else {"teacher": teacher})
    encoder = network(config(weights=path, feature="projector"), SIZE)
    assert not any(tensor.any() for tensor in encoder.state_dict().values())


def marked(module):
    """Return the module's state with every tensor filled at random, so that a wrong place shows."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor)
    return {key: value.clone() for key, value in module.state_dict().items()}


def layouts():
    torch.manual_seed(0)
    swav, vicreg = (
        SwAV(SwAVConfig(weights="none", feature="projector"), SIZE),
        VICReg(VICRegConfig(weights="none"), SIZE),
    )
    msn = MSN(MSNConfig(**TINY, weights="none"), SIZE)
    data2vec = Data2Vec(Data2VecConfig(**TINY, weights="none"), SIZE)
    flat = {
        f"module.{k.replace('trunk.', '').replace('head.', 'projection_head.')}": v for k, v in marked(swav).items()
    }
    yield swav, flat | {"module.prototypes.weight": torch.zeros(9, 128)}
    bare = {key.removeprefix("trunk."): value for key, value in marked(vicreg).items()}
    yield vicreg, bare
    full = {f"module.backbone.{key}": value for key, value in bare.items()}
    yield vicreg, {"epoch": 99, "model": full | {"module.projector.0.weight": torch.zeros(9, 2048)}}
    target = {f"module.{key.removeprefix('trunk.')}": value for key, value in marked(msn).items()}
    yield msn, {"target_encoder": target | {"module.fc.fc1.weight": torch.zeros(9, 32)}, "encoder": {}, "epoch": 1}
    model = {key.removeprefix("trunk."): value for key, value in marked(data2vec).items()}
    extra = {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(9, 32)}
    yield data2vec, {"model": model | extra | {"rel_pos_bias.relative_position_index": torch.zeros(17, 17)}}


@pytest.mark.parametrize("case", range(5))
def test_every_layout_fills_every_tensor(case, tmp_path):
    original, content = list(layouts())[case]
    path = save(tmp_path, content)
    loaded = type(original)(original.config.model_copy(update={"weights": path}), SIZE)
    for key, value in original.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[key], value), key


def test_a_file_of_another_kind_says_what_it_looks_like(tmp_path):
    resnet = save(tmp_path, VICReg(VICRegConfig(weights="none"), SIZE).trunk.state_dict())
    with pytest.raises(UserError, match=r"does not fit DINO: it lacks trunk.cls_token.*looks like a ResNet-50 of"):
        DINO(DINOConfig(weights=resnet), SIZE)
    small = save(tmp_path, {"model": state("deit_vit_tiny")})
    with pytest.raises(UserError, match="looks like a ViT of width 32 with 2 blocks and patches of 14 px"):
        DeiT(DeiTConfig(weights=small), SIZE)


def test_the_mean_of_patches_represents_where_the_class_token_was_not_trained():
    encoder = Data2Vec(Data2VecConfig(**TINY, weights="none"), SIZE).eval()
    image = torch.rand(2, 3, 56, 56)
    assert encoder.patch_features(image).shape == (2, 16, 32)
    torch.testing.assert_close(encoder(image), encoder.patch_features(image).mean(1))
