"""Clusters as labels: recovered where they are obvious, assigned as often as they occur, stored in the run."""

import pytest
import torch
from sklearn.cluster import KMeans

from rcg.config import load_experiment
from rcg.core import checkpoint
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding import clusters
from rcg.encoding.clusters import GOLDEN, assign, cluster_at, default_number, fit
from rcg.encoding.run_folder import Mode, RunFolder
from rcg.encoding.workspace import Workspace
from rcg.evaluation.rdm_samples import RDMSampling, sample_representations, sweep_samplers
from rcg.pipeline import Pipeline, SamplingOptions
from rcg.training.conditioning import generator_conditioning
from rcg.training.tasks.generator import ConditionedImages
from tests.toy import train, write


def heaps(*counts):
    """Return tight heaps of points far from each other, with the numbers of their heaps."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    return 10 * torch.eye(len(counts))[labels] + 0.1 * torch.randn(len(labels), len(counts), generator=draw), labels


def test_heaps_are_recovered():
    z, labels = heaps(30, 50, 20)
    clusters = fit([z], 3, 0)
    assert sorted(clusters.counts) == [20, 30, 50]
    assert all(len(clusters.labels[labels == number].unique()) == 1 for number in range(3))
    means = torch.stack([z[clusters.labels[:, 0] == number].mean(0) for number in range(3)])
    torch.testing.assert_close(clusters.centers, means, atol=0.1, rtol=0)
    assert clusters.space.vocab == 3
    assert clusters.space != fit([z + 1], 3, 0).space


def test_every_view_has_the_label_of_its_own_representation():
    z, _ = heaps(30, 50, 20)
    other = z.roll(1, dims=0)
    clusters = fit(iter([z, other]), 3, 0)
    assert clusters.labels.shape == (100, 2)
    assert torch.equal(clusters.labels[:, 0].roll(1), clusters.labels[:, 1])
    assert torch.equal(assign(other, clusters.centers), clusters.labels[:, 1])
    assert sorted(clusters.counts) == [40, 60, 100]


def test_a_generator_learns_each_view_with_its_own_label(tmp_path):
    path = write(tmp_path, data__shift=0.3, data__views=3, encoder__weights="none", generator__condition="cluster")
    work = Workspace(load_experiment(path, ["clusters=6"]), launch())
    condition = generator_conditioning(work)
    data = ConditionedImages(work.images.train, 3, None, labels=condition.labels)
    z, centers = work.z("train"), work.clusters().centers
    for key in [(position, draw) for position in range(0, 180, 7) for draw in (1, 5)]:
        own = assign(z.rows([key[0]], [key[1] % 3]), centers)
        assert data[key]["label"] == own[0]
    assert (condition.labels[:, 0] != condition.labels[:, 1]).any()


def test_they_are_nearly_as_tight_as_those_of_lloyds_algorithm():
    z = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    clusters = fit([z], 10, 0)
    inertia = (z - clusters.centers[clusters.labels[:, 0]]).square().sum().item()
    assert inertia < 1.1 * KMeans(10, n_init=3, random_state=0).fit(z.numpy()).inertia_


def test_a_vector_belongs_to_the_nearest_center(monkeypatch):
    monkeypatch.setattr("rcg.encoding.clusters.ROWS", 2)
    centers = torch.tensor([[0.0], [1.0], [5.0]])
    assert assign(torch.tensor([[0.4], [0.6], [9.0], [2.9], [3.1]]), centers).tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("number", [40, 1000])
def test_clusters_are_assigned_as_often_as_they_occur(number):
    counts = [5, 0, 3, 2]
    assigned = torch.tensor([cluster_at(counts, i * GOLDEN % 1) for i in range(number)]).bincount(minlength=4)
    assert (assigned - torch.tensor(counts) * number / 10).abs().max() <= 2
    assert [cluster_at(counts, share) for share in (0.0, 0.499, 0.5, 0.799, 0.8, 1 - 1e-12)] == [0, 0, 2, 2, 3, 3]


def test_there_are_not_more_clusters_than_images_allow():
    assert [default_number(45_000, 10), default_number(45_000, 0), default_number(180, 10), default_number(60, 0)] == [
        100,
        100,
        3,
        2,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A generator conditioned on clusters of an untrained encoder."""
    folder = tmp_path_factory.mktemp("clusters")
    path = write(folder, encoder__weights="none", generator__condition="cluster", generator__train__steps=2)
    train("generator", path, "clusters=4")
    return folder / "run"


def test_a_generator_learns_the_labels_that_are_stored_in_the_run(run):
    (path,) = (run / "fitted").glob("clusters-*.safetensors")
    stage = RunFolder(run).stage_folder("dit-cluster")
    facts = stage.part().facts
    tensors, origin = checkpoint.load_tensors(path)
    assert tuple(tensors["labels"].flatten().bincount(minlength=4).tolist()) == facts.cluster_counts
    assert sum(facts.cluster_counts) == 180
    work = Workspace(stage.experiment(), launch())
    assert origin["representation"] == work.representation.space.id
    assert facts.cond == work.clusters().space
    real = work.real_data(work.representation.space)
    assert torch.equal(assign(real.train_z, tensors["centers"]), tensors["labels"][:, 0])


def test_samples_are_of_clusters_as_often_as_training_images_are(run):
    pipeline = Pipeline.from_pretrained(run)
    counts = torch.tensor(pipeline.labels.counts)
    for assignment, tolerance in (("balanced", 0.02), ("random", 0.15)):
        labels = torch.tensor(pipeline.labels.assign(range(200), assignment, seed=3))
        assert ((labels.bincount(minlength=4) / 200) - counts / counts.sum()).abs().max() < tolerance
    assert pipeline.generate(range(3), SamplingOptions(label=2, steps=1)).labels.tolist() == [2, 2, 2]
    assert pipeline.labels.names[2] == "cluster 2"


def test_other_clusters_are_another_experiment_and_too_many_are_refused(run):
    path = run.parent / "toy.yaml"
    with pytest.raises(UserError, match="clusters: 4 -> 5"):
        train("generator", path, "clusters=5", mode=Mode.RESUME)
    with pytest.raises(UserError, match="clusters is 500, but there are 180 training images"):
        train("generator", path, "clusters=500", f"run={run.parent / 'other'}")


@pytest.fixture(scope="module")
def rdm_run(tmp_path_factory):
    """An RDM conditioned on clusters of an untrained encoder, and a generator of its representations."""
    folder = tmp_path_factory.mktemp("rdm-clusters")
    changes = {"data__shift": 0.1, "data__views": 2, "encoder__weights": "none", "rdm__condition": "cluster"}
    path = write(folder, **changes, rdm__train__steps=2, generator__train__steps=2)
    for stage in ("rdm", "generator"):
        train(stage, path, "clusters=4", "rdm.guidance.scale=1.5")
    return folder / "run"


def test_an_rdm_learns_the_clusters_of_its_representations(rdm_run):
    work = Workspace(RunFolder(rdm_run).rdm.experiment(), launch())
    facts, clusters = RunFolder(rdm_run).rdm.part().facts, work.clusters()
    assert facts.cond == clusters.space
    assert facts.cluster_counts == tuple(clusters.counts)
    assert sum(facts.cluster_counts) == 2 * len(work.images.train)
    last = (rdm_run / "rdm" / "log.jsonl").read_text()
    assert "rep_agreement" in last


def test_representations_are_of_clusters_as_often_as_training_images_are(rdm_run, tmp_path):
    pipeline = Pipeline.from_pretrained(rdm_run)
    samples = pipeline.generate(range(40), SamplingOptions(steps=1))
    assert samples.labels.tolist() == pipeline.labels.assign(range(40), "balanced", 0)
    assert pipeline.labels.counts == RunFolder(rdm_run).rdm.part().facts.cluster_counts
    assert pipeline.generate([0], SamplingOptions(label=2, steps=1)).labels.tolist() == [2]
    options = RDMSampling(40, 0, 40, 2, None, None, None, None, None, False)
    work = Workspace(RunFolder(rdm_run).rdm.experiment(), launch())
    sample_representations(work, tmp_path, options)
    assert "cluster 3" in (tmp_path / "classes.md").read_text()
    assert checkpoint.load(tmp_path / "representations.safetensors", "representations").tensors["label"].tolist() == (
        samples.labels.tolist()
    )
    sweep_samplers(work, ["ddim"], [2], 20, 0, False)


def test_an_rdm_goes_on_with_the_clusters_that_it_learned(rdm_run):
    path = rdm_run.parent / "toy.yaml"
    with pytest.raises(UserError, match="clusters: 4 -> 5"):
        train("rdm", path, "clusters=5", "rdm.guidance.scale=1.5", mode=Mode.RESUME)
    train("rdm", path, "clusters=4", "rdm.guidance.scale=1.5", "rdm.train.steps=3", mode=Mode.RESUME)
    assert RunFolder(rdm_run).rdm.part().facts.step == 3
    with pytest.raises(UserError, match="other clusters than the experiment's"):
        sample_representations(
            Workspace(load_experiment(path, ["clusters=5", "rdm.guidance.scale=1.5"]), launch()),
            rdm_run / "out",
            RDMSampling(4, 0, 4, 2, None, None, None, None, None, False),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"centers": torch.zeros(3, 5)}, r"centers is \(3, 5\)"),
        ({"centers": torch.zeros(3, 4).double()}, "centers is of torch.float64"),
        ({"centers": torch.full((3, 4), torch.nan)}, "centers holds values that are infinite"),
        ({"labels": torch.full((6, 2), 3)}, "labels are not all from 0 to 2"),
        ({"labels": torch.full((6, 2), -1)}, "labels are not all from 0 to 2"),
        ({"labels": torch.zeros(7, 2, dtype=torch.int64)}, r"labels is \(7, 2\)"),
        ({"labels": None}, "it lacks labels"),
        ({"other": torch.zeros(1)}, "it has also other"),
    ],
)
def test_an_edited_file_of_clusters_is_refused_by_name(changes, said, tmp_path):
    path = tmp_path / "clusters.safetensors"
    tensors = {"centers": torch.randn(3, 4), "labels": torch.zeros(6, 2, dtype=torch.int64)}
    checkpoint.save_tensors(path, tensors, {})
    assert torch.equal(clusters.load(path, (3, 4), (6, 2)).centers, tensors["centers"])
    changed = {key: value for key, value in (tensors | changes).items() if value is not None}
    checkpoint.save_tensors(path, changed, {})
    with pytest.raises(UserError, match=rf"clusters.safetensors.*{said}"):
        clusters.load(path, (3, 4), (6, 2))
