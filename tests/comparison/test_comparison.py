"""The parts of a comparison: gaps and their stds, real representations, counted evaluations, refusals."""

import pytest
import torch

from rcg.comparison.arms import ARMS
from rcg.comparison.cost import count_rows
from rcg.comparison.report import gap_closed
from rcg.comparison.samples import RealRepresentations
from rcg.comparison.study import check, unavailable
from rcg.config import GuidanceConfig, load_experiment
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.rng import SampleNoise
from rcg.encoding.workspace import RealData, Workspace
from rcg.evaluation.scores import Score
from rcg.pipeline import SamplingOptions
from tests.models import dit
from tests.toy import write


def score(value, std=None):
    return Score("space", "FD", value, "low", std)


def test_the_gap_is_closed_as_far_as_the_paper_says():
    # RCG, Table 9a: none 14.23, cluster 6.60, generated 5.07, oracle 4.37
    none, oracle = score(14.23), score(4.37)
    assert gap_closed(none, score(5.07), oracle).mean == pytest.approx(0.93, abs=0.005)
    assert gap_closed(none, score(6.60), oracle).mean == pytest.approx(0.77, abs=0.005)
    assert gap_closed(none, none, oracle) == (0, 0)
    assert gap_closed(none, oracle, oracle) == (1, 0)
    assert gap_closed(oracle, score(5.07), none) is None


def test_the_std_of_a_gap_is_that_of_simulated_scores():
    values, stds = (10.0, 6.0, 4.0), (0.1, 0.15, 0.05)
    found = gap_closed(*(score(value, std) for value, std in zip(values, stds, strict=True)))
    draws = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    none, arm, oracle = (torch.tensor(values) + draws * torch.tensor(stds)).T
    assert found.std == pytest.approx(((none - arm) / (none - oracle)).std().item(), rel=0.02)


class Images:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


REAL = RealData(Images("train"), torch.arange(30.0)[:, None], Images("validation"), 100 + torch.arange(10.0)[:, None])


@pytest.mark.parametrize(
    ("count", "split", "values"), [(10, "validation images", (100, 110)), (11, "training images", (0, 30))]
)
def test_real_representations_come_once_each(count, split, values):
    real = RealRepresentations(REAL, count, 3)
    assert real.facts["of"] == split
    every = real[list(range(real.facts["number"]))][:, 0]
    assert sorted(every.tolist()) == list(range(*values))
    assert every.tolist() != sorted(every.tolist())
    assert torch.equal(real[[4, 2]][:, 0], every[[4, 2]])
    assert torch.equal(real[[real.facts["number"]]][0], every[:1])
    assert not torch.equal(RealRepresentations(REAL, count, 4)[list(range(10))], real[list(range(10))])


@pytest.mark.parametrize(("scale", "interval", "evaluations"), [(1, (0, 1), 4), (2, (0, 1), 8), (2, (0, 0.5), 6)])
def test_guided_evaluations_count_twice(scale, interval, evaluations):
    m = dit(Space((5,)), sampler={"name": "ddim", "steps": 4})
    guidance = GuidanceConfig(scale=scale, interval=interval)
    with count_rows([m]) as count, torch.no_grad():
        m.sample(torch.randn(3, 5), SampleNoise(0, range(3), "t"), guidance=guidance)
    assert count.rows / 3 == evaluations
    m.network(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 5))
    assert count.rows / 3 == evaluations, "nobody counts any more"


def test_arms_differ_by_their_condition_alone(tmp_path):
    config = load_experiment(write(tmp_path)).generator
    folders = {arm.variant(config).folder_name for arm in ARMS.values()}
    assert folders == {"dit-none", "dit-none-self", "dit-cluster", "dit-class", "dit-joint", "dit"}
    changed = ARMS["self"].variant(config).model_dump() | {"condition": "representation"}
    assert changed | {"self_condition": False} == config.model_dump()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generator": None}, "add a section generator"),
        ({"generator__self_condition": True}, "self_condition is one of the arms that are compared"),
        (
            {"generator__condition": "none", "generator__joint_representation": True},
            "joint_representation is one of the arms that are compared",
        ),
        (
            {"generator__train__patience": 3, "generator__train__evaluate_every": 5},
            "patience ends trainings at different steps",
        ),
        ({}, "holds no trained RDM, which the arms generated, oracle need: run tools/train_rdm.py"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        check(
            Workspace(load_experiment(write(tmp_path, **changes)), None),
            ["none", "generated", "oracle"],
            SamplingOptions(),
        )


def test_arms_that_cannot_be_say_why(tmp_path):
    experiment = load_experiment(write(tmp_path))
    assert unavailable("class", experiment, ()) == "the data set has no labels"
    assert [unavailable(key, experiment, ("a", "b")) for key in ARMS] == [None] * len(ARMS)
    clipped = load_experiment(write(tmp_path, generator__sampler={"name": "ddim", "clip": True}))
    assert "set sampler.clip to false" in unavailable("joint", clipped, ())
    adm = load_experiment(write(tmp_path, generator={"name": "adm"}))
    assert unavailable("joint", adm, ()) == "adm cannot generate a representation together with the image"
