"""A network that lacks what its section asks of it is refused when the model is built."""

import pytest

from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import GENERATORS
from rcg.diffusion.model import build
from rcg.diffusion.processes.masked import MaskedConfig
from tests.models import TOKENS, dit, mage

PIXELS = Space((3, 8, 8), id="pixels")
ASKED = {"align": {"align": {"depth": 1}}, "self_condition": {"self_condition": True}}
ASKED |= {"grad_checkpointing": {"grad_checkpointing": True}, "early_exit": {"early_exit": {"block": 1}}}
CASES = [(name, capability) for name in GENERATORS.names() for capability in ASKED]


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_a_missing_capability_is_refused_by_its_name(name, capability, monkeypatch):
    network = GENERATORS.get(name)
    monkeypatch.setattr(network, "capabilities", network.capabilities - {capability})
    config = network.Config(condition="none", **ASKED[capability])
    data = TOKENS if isinstance(config.process, MaskedConfig) else PIXELS
    with pytest.raises(UserError, match=f"{name} does not support {capability}: set it to false or null"):
        build(config, network, data, None)


def test_several_missing_capabilities_are_named_together(monkeypatch):
    network = GENERATORS.get("dit")
    monkeypatch.setattr(network, "capabilities", frozenset())
    settings = {key: value for values in ASKED.values() for key, value in values.items()}
    with pytest.raises(UserError, match="dit does not support align, early_exit, grad_checkpointing, self_condition"):
        build(network.Config(condition="none", **settings), network, PIXELS, None)


def test_capabilities_that_are_there_are_enough():
    assert dit(self_condition=True, align={"depth": 1}, grad_checkpointing=True).config.requirements == {
        "self_condition",
        "align",
        "grad_checkpointing",
    }


def test_mage_cannot_be_aligned(toy_autoencoder):
    with pytest.raises(
        UserError, match="mage does not support align: set it to false or null, or choose another network"
    ):
        mage(align={"depth": 1})


def test_a_process_for_other_data_is_refused(toy_autoencoder):
    with pytest.raises(UserError, match="the process masked cannot corrupt real numbers of pixels"):
        mage(data=PIXELS)
