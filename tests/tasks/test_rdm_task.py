"""The RDM says how far it is from real representations."""

import pytest
import torch

from rcg.contracts import Space
from rcg.model import build
from rcg.networks.rep_mlp import RepMLP, RepMLPConfig
from rcg.tasks.rdm import RDMTask
from rcg.vectors import Views


def task(cond=None, labels=None):
    config = RepMLPConfig(
        width=16, depth=1, condition="class" if cond else "none", sampler={"name": "ddim", "steps": 3}
    )
    model = build(config, RepMLP, Space((5,)), cond)
    z = torch.randn(400, 2, 5, generator=torch.Generator().manual_seed(0)) + 2
    return RDMTask(model, Views([z]), labels, {})


def test_rep_fd_is_the_floor_for_a_model_that_draws_real_representations(monkeypatch):
    t = task()
    monkeypatch.setattr(t.modules["rdm"], "sample", lambda cond, noise: t.real)
    metrics = t.evaluate(t.modules, 0).metrics
    assert metrics["rep_fd"] == pytest.approx(metrics["rep_fd_floor"])


def test_rep_fd_sees_a_shift(monkeypatch):
    t = task()
    monkeypatch.setattr(t.modules["rdm"], "sample", lambda cond, noise: t.reference + 3)
    assert t.evaluate(t.modules, 0).metrics["rep_fd"] == pytest.approx(5 * 9, rel=1e-3)


def test_an_untrained_model_is_far_from_the_floor():
    metrics = task().evaluate(task().modules, 0).metrics
    assert metrics["rep_fd"] > 10 * metrics["rep_fd_floor"]


def test_a_class_conditional_rdm_is_judged_with_the_labels_of_the_data():
    labels = torch.arange(400) % 4
    t = task(Space((), vocab=4), labels)
    asked = []
    t.modules["rdm"].network.register_forward_pre_hook(lambda module, args: asked.append(args[2]))
    t.evaluate(t.modules, 0)
    assert torch.equal(asked[0], labels[: len(t.real)])


def test_batches_take_one_of_the_views():
    t = task()
    batch = t.data.__getitems__([(3, 0), (3, 1), (4, 2)])
    expected = t.data.columns["z"].rows([3, 3, 4], [0, 1, 0])
    assert torch.equal(batch["z"], expected)
