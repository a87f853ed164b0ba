"""Labels that nobody gave: found again where they are plain, dealt out as often as they occur, kept in the run."""

import pytest
import torch
from sklearn.cluster import KMeans

from rcg.config import load
from rcg.core import checkpoint
from rcg.encoding.clusters import GOLDEN, assign, deal, fit, suitable
from rcg.encoding.representation import open_representation
from rcg.encoding.workspace import real_representations
from rcg.pipeline import Pipeline
from tests.toy import tool, write


def heaps(*counts):
    """Return tight heaps of points far from each other, with the numbers of their heaps."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    return 10 * torch.eye(len(counts))[labels] + 0.1 * torch.randn(len(labels), len(counts), generator=draw), labels


def test_heaps_are_found_again():
    z, labels = heaps(30, 50, 20)
    found = fit(z, 3, 0)
    assert sorted(found.counts) == [20, 30, 50]
    assert all(len(found.labels[labels == number].unique()) == 1 for number in range(3))
    means = torch.stack([z[found.labels == number].mean(0) for number in range(3)])
    torch.testing.assert_close(found.centers, means, atol=0.1, rtol=0)
    assert found.space.vocab == 3
    assert found.space != fit(z + 1, 3, 0).space


def test_they_are_nearly_as_tight_as_those_of_lloyds_algorithm():
    z = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    found = fit(z, 10, 0)
    inertia = (z - found.centers[found.labels]).square().sum().item()
    assert inertia < 1.1 * KMeans(10, n_init=3, random_state=0).fit(z.numpy()).inertia_


def test_a_vector_belongs_to_the_nearest_center(monkeypatch):
    monkeypatch.setattr("rcg.encoding.clusters.ROWS", 2)
    centers = torch.tensor([[0.0], [1.0], [5.0]])
    assert assign(torch.tensor([[0.4], [0.6], [9.0], [2.9], [3.1]]), centers).tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("number", [40, 1000])
def test_clusters_are_dealt_out_as_often_as_they_occur(number):
    counts = [5, 0, 3, 2]
    dealt = torch.tensor([deal(counts, i * GOLDEN % 1) for i in range(number)]).bincount(minlength=4)
    assert (dealt - torch.tensor(counts) * number / 10).abs().max() <= 2
    assert [deal(counts, share) for share in (0.0, 0.499, 0.5, 0.799, 0.8, 1 - 1e-12)] == [0, 0, 2, 2, 3, 3]


def test_there_are_not_more_clusters_than_images_allow():
    assert [suitable(45_000, 10), suitable(45_000, 0), suitable(180, 10), suitable(60, 0)] == [100, 100, 3, 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A generator that is told clusters of an untrained encoder."""
    folder = tmp_path_factory.mktemp("clusters")
    path = write(folder, encoder__weights="none", generator__condition="cluster", generator__train__steps=2)
    done = tool("train_pixel", path, "clusters=4")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_generator_learns_the_labels_that_the_run_keeps(run):
    (kept,) = (run / "representation").glob("clusters-*.safetensors")
    part, clusters = checkpoint.load(run / "dit-cluster" / checkpoint.FILE), checkpoint.load(kept)
    counts = part.facts["clusters"]["counts"]
    assert clusters.tensors["labels"].bincount(minlength=4).tolist() == counts
    assert sum(counts) == 180
    assert clusters.facts["representation"] == part.facts["clusters"]["representation"]
    experiment = load(run / "dit-cluster" / "config.yaml")
    real = real_representations(experiment, open_representation(experiment).space)
    assert torch.equal(assign(real.z, clusters.tensors["centers"]), clusters.tensors["labels"])


def test_samples_are_of_clusters_as_often_as_training_images_are(run):
    pipeline = Pipeline.from_run(run)
    counts = torch.tensor(pipeline.counts)
    for labels, tolerance in (("balanced", 0.02), ("random", 0.15)):
        drawn = pipeline._labels(range(200), None, 3 if labels == "random" else None)
        assert ((drawn.bincount(minlength=4) / 200) - counts / counts.sum()).abs().max() < tolerance
    assert pipeline.sample(range(3), label=2, steps=1).labels.tolist() == [2, 2, 2]
    assert pipeline.classes[2] == "cluster 2"


def test_other_clusters_are_another_experiment_and_too_many_are_refused(run):
    toy = run.parent / "toy.yaml"
    assert "clusters: 4 -> 5" in tool("train_pixel", toy, "clusters=5", "--resume").stderr
    refused = tool("train_pixel", toy, "clusters=500", f"run={run.parent / 'other'}")
    assert "clusters is 500, but there are 180 training images" in refused.stderr
