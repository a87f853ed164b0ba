"""Muon for the matrices inside blocks, AdamW for the rest: both against torch's own."""

import re

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from rcg.config import TrainConfig
from rcg.config.training import AutoencoderTrain, ContrastiveTrain
from rcg.core.contracts import Denoiser, EvalResult, Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS, NETWORKS
from rcg.diffusion.model import build
from rcg.encoding.run_folder import StageFolder
from rcg.training.optimizer import build_optimizer, set_rate
from tests.line import DeathError, Line, config_for, die, log, run
from tests.small import GENERATOR, NETWORK, PIXELS, TOKENS, VECTORS

MUON = config_for(steps=12, save_every=4, log_every=3, batch_size=10, lr=0.01, optimizer="muon", weight_decay=0.1)
LEFT_TO_ADAMW = {
    "dit": {"patches", "time.0", "time.2", "cond.embed", "blocks.N.modulation.1", "modulation.1", "output"},
    "adm": {"time.0", "time.2", "cond.embed", "unet.input", "unet.output", "unet.REST.time"},
    "ldm": {"time.0", "time.2", "unet.input", "unet.output", "unet.REST.time"},
    "mage": {"words", "positions", "bridge", "cond.embed", "decoder_positions", "head.0"},
    "rep_mlp": {"time.0", "time.2", "input", "blocks.N.time", "output"},
    "skip_mlp": {"time.0", "time.2", "layers.0.linear", "layers.N.scale", "output"},
}
"""Everything with rows and columns that Muon does not train; N is a number, REST any path."""


class Layers(Denoiser):
    """Two layers, a convolution of one position between them."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.last = nn.Linear(1, 6), nn.Linear(6, 1)
        self.middle, self.conv = nn.Linear(6, 6), nn.Conv2d(6, 4, 3, padding=1)
        self.back = nn.Linear(4, 6)

    def forward(self, x):
        h = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.last(h + self.back(self.conv(h[:, :, None, None])[:, :, 0, 0]))

    def hidden_matrices(self):
        return [self.middle.weight, self.conv.weight, self.back.weight]


class Curve(Line):
    """Fits a line by such layers."""

    def __init__(self, at=None):
        super().__init__(at)
        self.modules = {"line": Layers()}

    def evaluate(self, models, step):
        return EvalResult({}, {})


def gradients(module, count):
    """Yield so many draws of gradients for all parameters."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}


def trained(module, config, count=4):
    """Return the parameters after some steps, flattened to rows and columns where they are convolutions."""
    optimizer = build_optimizer(module, config)
    for step, drawn in enumerate(gradients(module, count)):
        for name, p in module.named_parameters():
            p.grad = drawn[name].clone()
        set_rate(optimizer, config.lr / (1 + step))
        optimizer.step()
    return {name: p.detach().flatten(1) if p.ndim > 1 else p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("muon_lr", [None, 0.03])
def test_its_steps_are_those_of_torchs_muon_and_adamw(muon_lr):
    config = TrainConfig(lr=0.01, optimizer="muon", muon_lr=muon_lr, weight_decay=0.1, betas=(0.8, 0.9))
    torch.manual_seed(0)
    module = Layers()
    hidden = {id(p) for p in module.hidden_matrices()}
    copies, decayed, others = {}, [], []
    matrices = []
    for name, p in module.named_parameters():
        copies[name] = nn.Parameter(p.detach().clone().flatten(1) if p.ndim > 1 else p.detach().clone())
        (matrices if id(p) in hidden else decayed if p.ndim > 1 else others).append(copies[name])
    muon = getattr(torch.optim, "Muon", None)  # torch 2.9 and later
    if muon is None:
        pytest.skip("this torch has no Muon")
    rate = muon_lr or config.lr
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizers = [
        (muon(matrices, rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), rate),
        (torch.optim.AdamW(groups, config.lr, config.betas), config.lr),
    ]
    for step, drawn in enumerate(gradients(module, 4)):
        for name, copy in copies.items():
            copy.grad = drawn[name].reshape(copy.shape)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak / (1 + step)
            optimizer.step()
    for name, value in trained(module, config).items():
        torch.testing.assert_close(value, copies[name].detach(), atol=1e-6, rtol=1e-5, msg=name)


def test_a_step_is_nearly_orthogonal_and_as_large_as_adamws():
    """With Newton-Schulz as published, singular values of the step lie around 0.2 lr sqrt(largest side)."""
    config = TrainConfig(lr=0.01, optimizer="muon")
    torch.manual_seed(0)
    module = Layers()
    before = {name: p.detach().clone().flatten(1) for name, p in module.named_parameters() if p.ndim > 1}
    after = trained(module, config, count=1)
    for name in ("middle.weight", "conv.weight", "back.weight"):
        step = before[name] - after[name]
        values = torch.linalg.svdvals(step) / (0.2 * 0.01 * max(step.shape) ** 0.5)
        assert 0.6 < values.min() <= values.max() < 1.3, name


def model(name, **config):
    if name in NETWORKS.names():
        network = NETWORKS.get(name)
        return build(network.Config(**NETWORK, **config), network, VECTORS, None)
    network = GENERATORS.get(name)
    config = network.Config(**GENERATOR[name], **config)
    return build(config, network, TOKENS if config.process.discrete else PIXELS, Space((6,)))


@pytest.mark.parametrize("name", LEFT_TO_ADAMW)
def test_every_network_says_which_matrices_lie_inside_its_blocks(name):
    network = model(name, train={"optimizer": "muon"}).network
    hidden = {id(p) for p in network.hidden_matrices()}
    assert len(hidden) == len(network.hidden_matrices()) > 0
    left = {key.removesuffix(".weight") for key, p in network.named_parameters() if p.ndim > 1 and id(p) not in hidden}
    left = {re.sub(r"^unet\.(down|up|bottleneck)\..*\.", "unet.REST.", key) for key in left}
    left = {re.sub(r"^(blocks|layers)\.(?!0\.linear)\d+\.", r"\1.N.", key) for key in left}
    assert left == LEFT_TO_ADAMW[name]


def test_filters_of_single_channels_are_no_matrices():
    network = model("dit", mlp="conv", train={"optimizer": "muon"}).network
    shapes = {tuple(p.shape) for p in network.hidden_matrices()}
    assert shapes == {(48, 16), (16, 16), (64, 16), (16, 64)}


def test_a_network_that_does_not_say_is_refused():
    class Silent(Denoiser):
        pass

    config = GENERATORS.get("dit").Config(condition="none", train={"optimizer": "muon"})
    with pytest.raises(UserError, match=r"Silent does not say which of its matrices .* set train.optimizer=adamw"):
        build(config, Silent, PIXELS, None)


@pytest.mark.parametrize("config", [ContrastiveTrain, AutoencoderTrain])
def test_encoders_and_autoencoders_keep_adamw(config):
    with pytest.raises(ValidationError, match="'adamw'"):
        config(optimizer="muon")


def test_a_rate_of_muon_without_muon_is_refused():
    with pytest.raises(ValidationError, match="muon_lr is the learning rate of optimizer: muon"):
        TrainConfig(muon_lr=0.1)


@pytest.mark.parametrize("killed", [2, 6, 11])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, killed):
    run(Curve(), MUON, tmp_path / "whole")
    with pytest.raises(DeathError):
        run(Curve({killed: die}), MUON, tmp_path / "killed")
    run(Curve(), MUON, tmp_path / "killed")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    whole, resumed = (StageFolder(tmp_path / name).part().tensors for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_state_of_the_other_optimizer_does_not_fit(tmp_path):
    run(Curve(), MUON.model_copy(update={"steps": 4}), tmp_path)
    with pytest.raises(UserError, match=r"does not fit this training: it has a tensor .*back.weight/momentum_buffer"):
        run(Curve(), MUON.model_copy(update={"optimizer": "adamw"}), tmp_path)
