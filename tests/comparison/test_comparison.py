"""The parts of a comparison: gaps and their deviations, real representations, counted evaluations, refusals."""

import pytest
import torch

from rcg.comparison.arms import ARMS, OfReal, check, unavailable, variant
from rcg.comparison.cost import counted
from rcg.comparison.report import gap_closed
from rcg.config import GuidanceConfig, load
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.rng import Streams
from rcg.encoding.workspace import Real
from rcg.evaluation.scores import Figure
from rcg.metrics.bootstrap import Spread
from tests.diffusion.test_model import model
from tests.toy import write


def figure(value, deviation=None):
    return Figure("space", "FD", value, None if deviation is None else Spread(value, deviation), "low")


def test_the_gap_is_closed_as_far_as_the_paper_says():
    # RCG, Table 9a: none 14.23, cluster 6.60, generated 5.07, oracle 4.37
    none, oracle = figure(14.23), figure(4.37)
    assert gap_closed(none, figure(5.07), oracle).mean == pytest.approx(0.93, abs=0.005)
    assert gap_closed(none, figure(6.60), oracle).mean == pytest.approx(0.77, abs=0.005)
    assert gap_closed(none, none, oracle) == (0, 0)
    assert gap_closed(none, oracle, oracle) == (1, 0)
    assert gap_closed(oracle, figure(5.07), none) is None


def test_the_deviation_of_a_gap_is_that_of_simulated_figures():
    values, deviations = (10.0, 6.0, 4.0), (0.1, 0.15, 0.05)
    found = gap_closed(*(figure(value, std) for value, std in zip(values, deviations, strict=True)))
    draws = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    none, arm, oracle = (torch.tensor(values) + draws * torch.tensor(deviations)).T
    assert found.deviation == pytest.approx(((none - arm) / (none - oracle)).std().item(), rel=0.02)


class Images:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


REAL = Real(Images("train"), torch.arange(30.0)[:, None], Images("held out"), 100 + torch.arange(10.0)[:, None])


@pytest.mark.parametrize(
    ("count", "whose", "values"), [(10, "held-out images", (100, 110)), (11, "training images", (0, 30))]
)
def test_real_representations_come_once_each(count, whose, values):
    told = OfReal(REAL, count, 3)
    assert told.facts["representations of"] == whose
    every = told[list(range(told.facts["number"]))][:, 0]
    assert sorted(every.tolist()) == list(range(*values))
    assert every.tolist() != sorted(every.tolist())
    assert torch.equal(told[[4, 2]][:, 0], every[[4, 2]])
    assert torch.equal(told[[told.facts["number"]]][0], every[:1])
    assert not torch.equal(OfReal(REAL, count, 4)[list(range(10))], told[list(range(10))])


@pytest.mark.parametrize(("scale", "interval", "evaluations"), [(1, (0, 1), 4), (2, (0, 1), 8), (2, (0, 0.5), 6)])
def test_guided_evaluations_count_twice(scale, interval, evaluations):
    m = model(Space((5,)), sampler={"name": "ddim", "steps": 4})
    with counted([m]) as count, torch.no_grad():
        m.sample(torch.randn(3, 5), Streams(0, range(3), "t"), GuidanceConfig(scale=scale, interval=interval))
    assert count.rows / 3 == evaluations
    m.network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 5))
    assert count.rows / 3 == evaluations, "nobody counts any more"


def test_arms_differ_by_what_they_are_told_alone(tmp_path):
    experiment = load(write(tmp_path))
    folders = {variant(experiment, arm).generator.arm for arm in ARMS.values()}
    assert folders == {"dit-none", "dit-none-self", "dit-cluster", "dit-class", "dit"}
    changed = variant(experiment, ARMS["self"]).generator.model_dump() | {"condition": "representation"}
    assert changed | {"self_condition": False} == experiment.generator.model_dump()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator": None}, "add a section generator"),
        ({"generator__self_condition": True}, "self_condition is one of the arms that are compared"),
        ({"generator__train__patience": 3}, "patience ends trainings at different steps"),
        ({}, "holds no trained RDM, beside which the arms generated, oracle are sampled: run tools/train_rdm.py"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        check(load(write(tmp_path, **changes)), ["none", "generated", "oracle"])


def test_arms_that_cannot_be_say_why(tmp_path):
    experiment = load(write(tmp_path))
    assert unavailable("class", experiment, ()) == "the data set has no labels"
    assert [unavailable(key, experiment, ("a", "b")) for key in ARMS] == [None] * len(ARMS)
