"""Representation alignment: its loss, its grids, and its place in training."""

import pytest
import torch

from rcg.config import AlignConfig, load_experiment
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.rng import batch_draws
from rcg.diffusion.alignment import AlignedModel, AlignmentHead
from rcg.diffusion.model import build
from rcg.generators.adm import ADM, ADMConfig
from rcg.generators.dit import DiT, DiTConfig
from tests.toy import KL, tool, train, write


def head(rows=2, columns=2, dim=5, width=5):
    """A head whose projection is the identity."""
    made = AlignmentHead(AlignConfig(weight=0.5), width, Space((rows, columns, dim)))
    made.project = torch.nn.Identity()
    return made


def test_the_loss_is_the_weighted_negative_cosine():
    patches = torch.randn(3, 4, 5)
    loss = head()
    assert loss(7 * patches, patches).item() == pytest.approx(-0.5)
    assert loss(-patches, patches).item() == pytest.approx(0.5)
    hidden = torch.randn(3, 4, 5)
    angles = [a @ b / a.norm() / b.norm() for a, b in zip(hidden.flatten(0, 1), patches.flatten(0, 1))]
    assert loss(hidden, patches).item() == pytest.approx(-0.5 * torch.stack(angles).mean().item(), abs=1e-6)


def test_a_grid_that_differs_is_resampled_in_its_place():
    # A ramp from left to right stays one, and a quarter of the grid stays where it is.
    patches = torch.zeros(1, 4, 4, 2)
    patches[..., 0] = torch.arange(4.0)
    patches[:, :2, :2, 1] = 1
    small = head(4, 4, 2, 2)._resample(patches.flatten(1, 2), 2).view(2, 2, 2)
    assert small[0, 0, 0] < small[0, 1, 0]
    assert torch.allclose(small[0, :, 0], small[1, :, 0])
    assert small[..., 1].argmax() == 0
    assert small[0, 0, 1] > 0.7 > 0.3 > small[1, 1, 1]


def model(**config):
    torch.manual_seed(0)
    config = DiTConfig(width=16, depth=3, heads=2, patch=4, condition="none", **config)
    return build(config, DiT, Space((3, 16, 16)), None)


def aligned(depth=2, **config):
    m = model(align={"depth": depth, "hidden": 8}, **config)
    return AlignedModel(m, m.config.align, Space((4, 4, 6)))


def test_the_tokens_compared_are_those_after_the_chosen_blocks():
    m = model(align={"depth": [3, 1], "hidden": 8})
    for p in m.network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    seen = []
    for block in m.network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    output = m.network(torch.randn(2, 3, 16, 16), torch.tensor([1, 5]))
    first, last = m.network.take_features()
    assert torch.equal(first, seen[0])
    assert torch.equal(last, seen[2])
    assert output.shape == (2, 1, 3, 16, 16)


def test_the_loss_of_several_depths_is_their_mean():
    one, other, both = (aligned(depth) for depth in (1, 3, [1, 3]))
    both.heads[0].load_state_dict(one.heads[0].state_dict())
    both.heads[1].load_state_dict(other.heads[0].state_dict())
    x, patches, losses = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 6), []
    for m in (one, other, both):
        for p in m.model.network.parameters():
            torch.nn.init.constant_(p, 0.1)
        with batch_draws(0, 0, 2, 2):
            losses.append(m(x, None, patches)["align"])
    assert losses[2].item() == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-5)
    losses[2].backward()
    assert all(p.grad is not None for head in both.heads for p in head.parameters())


def test_maps_of_a_unet_are_aligned_at_their_own_sides_and_widths():
    torch.manual_seed(0)
    config = ADMConfig(width=16, multipliers=[1, 2], blocks=1, condition="none", align={"depth": [1, 4], "hidden": 8})
    m = AlignedModel(build(config, ADM, Space((3, 16, 16)), None), config.align, Space((4, 4, 6)))
    x, seen = torch.randn(2, 3, 16, 16), []
    for cell in (m.model.network.unet.down[0], m.model.network.bottleneck()):
        cell.register_forward_hook(lambda module, args, output: seen.append(output))
    m.model.network(x, torch.tensor([1, 5]))
    shallow, middle = m.model.network.take_features()
    assert (shallow.shape, middle.shape) == ((2, 256, 16), (2, 64, 32))
    assert torch.equal(shallow.mT.reshape(2, 16, 16, 16), seen[0])
    assert torch.equal(middle.mT.reshape(2, 32, 8, 8), seen[1])
    losses = m(x, None, torch.randn(2, 16, 6))
    losses["align"].backward()
    assert m.model.network.unet.input.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("depth", "sentence"),
    [([1, 2, 1], "depth names a block twice"), ([], "align.depth"), ([0], "align.depth"), ("two", "align.depth")],
)
def test_impossible_depths_are_refused(depth, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_experiment(write(tmp_path, generator__align={"depth": depth}))


def test_a_depth_beyond_the_network_is_refused():
    with pytest.raises(UserError, match=r"align\.depth is 7, but there are 3 blocks: choose one of those"):
        model(align={"depth": [2, 7]})
    config = ADMConfig(width=16, multipliers=[1, 2], blocks=1, condition="none", align={"depth": 5})
    with pytest.raises(UserError, match=r"align\.depth is 5, but there are 4 blocks"):
        build(config, ADM, Space((3, 16, 16)), None)


def test_no_tokens_are_kept_after_a_step_or_in_an_evaluation():
    m, x = aligned([1, 3]), torch.randn(2, 3, 16, 16)
    m(x, None, torch.randn(2, 16, 6))
    assert not m.model.network.take_features()
    m.eval().model(x, None)
    assert not m.model.network.take_features()


def test_alignment_adds_a_loss_and_leaves_the_others_alone():
    m, x, patches = aligned(), torch.randn(2, 3, 16, 16), torch.randn(2, 16, 6)
    torch.manual_seed(1)
    with_it = m(x, None, patches)
    torch.manual_seed(1)
    without = m.model(x, None)
    assert set(with_it) - set(without) == {"align"}
    assert with_it["mse"] == without["mse"]
    with_it["align"].backward()
    assert all(p.grad is not None for p in m.heads.parameters())
    assert m.model.network.patches.weight.grad.abs().sum() > 0


def test_a_generator_is_aligned_through_the_tools_and_leaves_no_trace_in_its_checkpoint(tmp_path):
    encoder = {"name": "moco_v3", "arch": "vit_small", "width": 24, "depth": 1, "patch": 8, "weights": "none"}
    encoder |= {"projector_hidden": 16, "projector_dim": 8}
    settings = {"steps": 5, "batch_size": 4, "log_every": 5, "precision": "no", "tracker": "none"}
    path = write(tmp_path, encoder=encoder, generator__condition="none", generator__train=settings)
    stage = train("generator", path, "generator.align={depth: [1, 2], hidden: 8}")
    assert '"align": ' in stage.log.read_text()
    assert not [key for key in stage.part().tensors if "align" in key or "head" in key]
    sampled = tool("sample", tmp_path / "run", "--num", 2, "--out", tmp_path / "out")
    assert sampled.returncode == 0, sampled.stderr


def test_an_encoder_without_patches_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.encoders._published._grid", lambda trunk, side: None)
    path = write(tmp_path, encoder__weights="none", generator__align={"depth": 1}, generator__condition="none")
    with pytest.raises(UserError, match=r"generator\.align needs an encoder with patch tokens, and moco_v3 has none"):
        train("generator", path)
    assert not (tmp_path / "run").exists()


def test_latents_are_not_aligned_with_an_encoder_without_patches(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.encoders._published._grid", lambda trunk, side: None)
    align = {
        "generator__autoencoder__train__align": {"weight": 0.3},
        "generator__autoencoder__train__perceptual": "none",
    }
    path = write(tmp_path, encoder__weights="none", generator__autoencoder=KL, **align)
    with pytest.raises(UserError, match=r"generator\.autoencoder\.train\.align needs an encoder with patch tokens"):
        train("autoencoder", path)
    assert not (tmp_path / "run").exists()


def test_the_tokens_compared_are_those_of_the_pass_with_gradients():
    m = aligned(self_condition=True)
    m(torch.randn(4, 3, 16, 16), None, torch.randn(4, 16, 6))["align"].backward()
    assert m.model.network.patches.weight.grad.abs().sum() > 0
