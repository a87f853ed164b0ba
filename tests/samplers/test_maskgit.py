"""Parallel decoding: against recorded draws, the published rule written out, and known distributions."""

import math
from collections import Counter

import pytest
import torch

from rcg.config import GuidanceConfig
from rcg.contracts import MASK, Space
from rcg.processes.masked import Masked, MaskedConfig
from rcg.randomness import Streams
from rcg.registry import SAMPLERS
from rcg.samplers import maskgit
from rcg.samplers.maskgit import MaskGIT, MaskGITConfig, again, draw, gumbel
from tests.converters.test_mage_converter import published
from tests.parity import recorded

SPACE = Space((4, 4), vocab=5)
PROCESS = Masked(MaskedConfig())
FILLERS = [name for name in SAMPLERS.names() if SAMPLERS.get(name).Config.discrete]


class Common:
    """One stream for a whole batch: quick, for statistics."""

    def __init__(self, batch):
        self.batch, self.generator = batch, torch.Generator().manual_seed(0)

    def uniform(self, shape):
        return torch.rand(self.batch, *shape, generator=self.generator)


def toy(x, t, cond):
    """Any function of the tokens, and of the condition if there is one, will do as a network."""
    symbols = torch.arange(5.0).view(1, 5, 1, 1)
    said = 0 if cond is None else cond.view(-1, 1, 1, 1)
    return torch.sin(symbols * (x[:, None] + 2) + x.float().mean((1, 2)).view(-1, 1, 1, 1) + said)[:, None] * 2


@pytest.mark.parametrize("arm", ["cfg0", "cfg6"])
def test_decoding_equals_the_published_one(arm, monkeypatch):
    about, tensors = recorded(f"mage_gen_{arm}")
    config, m = about["config"], published().eval()
    ids = iter(tensors["aux/categorical_samples"].view(-1, 2, 16, 16))
    noise = iter(tensors["aux/gumbel"].float().view(-1, 2, 16, 16))
    monkeypatch.setattr(maskgit, "draw", lambda log_p, uniform: next(ids))
    monkeypatch.setattr(maskgit, "gumbel", lambda uniform: next(noise))
    m.config = m.config.model_copy(
        update={"sampler": MaskGITConfig(choice_temperature=config["choice_temperature"], steps=config["num_iter"])}
    )
    seen = []
    m.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    guidance = GuidanceConfig(scale=1 + config["cfg"], ramp="linear")
    with torch.no_grad():
        drawn = m.sample(tensors["in/rep"], Common(2), guidance)
    masks = [(x == MASK).flatten(1).sum(1).tolist() for x in seen]
    halves = 1 if config["cfg"] == 0 else 2
    assert masks == [[math.floor(256 * math.cos(math.pi / 2 * s / 8))] * 2 * halves for s in range(8)]
    torch.save(drawn, f"/tmp/mage_{arm}.pt")
