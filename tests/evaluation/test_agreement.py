"""Scores agree with torch-fidelity, called directly on the same images."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rcg.core.errors import UserError
from rcg.evaluation.extractors import FeatureExtractor, inception_extractor
from rcg.evaluation.features import extract
from rcg.evaluation.references import published_statistics, read_reference
from rcg.evaluation.samples import folder_images, npz_images
from rcg.evaluation.scores import Bootstrap, ReferenceFeatures, compare_features, reference_fd, without_reference_fd
from rcg.metrics.frechet import FittedGaussian, frechet_distance
from rcg.metrics.inception import LOGITS
from rcg.visual.grids import save_image

BOOTSTRAP = Bootstrap(4, 0, torch.device("cpu"))


def draw(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Vectors:
    """Features in memory."""

    def __init__(self, taps):
        self.taps = taps
        self.store = SimpleNamespace(count=len(next(iter(taps.values()))))

    def read(self, tap, limit=None):
        return self.taps[tap][:limit]

    def gaussian(self, tap):
        return FittedGaussian.fit(self.taps[tap])


class Tiny(FeatureExtractorBase):
    """Twelve fixed features and five logits of an image."""

    def __init__(self, name, features_list, **ignored):
        super().__init__(name, features_list)
        draw = torch.Generator().manual_seed(0)
        self.first = torch.randn(12, 3 * 16 * 16, generator=draw) / 2000
        self.second = torch.randn(5, 12, generator=draw)

    @staticmethod
    def get_provided_features_list():
        return "2048", LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return LOGITS if metric == "isc" else "2048"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, image):
        features = (image.flatten(1).float() @ self.first.T).tanh()
        known = {"2048": features, LOGITS: 3 * features @ self.second.T}
        return tuple(known[name] for name in self.features_list)


def images(count, seed, shade):
    draw = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4, generator=draw), 16, mode="bilinear")
    return (255 * (smooth * shade).clamp(0, 1)).to(torch.uint8)


def folder(path, *arguments):
    path.mkdir()
    found = images(*arguments)
    for i, image in enumerate(found):
        save_image(image / 255, path / f"{i:04d}.png")
    return found


def tiny_extractor():
    network = Tiny("tiny", ["2048", LOGITS])
    return FeatureExtractor(
        "tiny",
        {"tap": "2048"},
        lambda batch: dict(zip(("2048", LOGITS), network(batch.images))),
        ("2048", LOGITS),
        "FID",
        is_inception=True,
    )


def compute_scores(extractor, samples, reference, cache, warnings=None):
    accelerator = Accelerator(cpu=True)
    features = extract(samples, [extractor], cache, accelerator, "samples")[extractor.name]
    real = ReferenceFeatures(extract(reference, [extractor], cache, accelerator, "reference"))
    scores = compare_features(extractor, features, real, BOOTSTRAP, [] if warnings is None else warnings)
    return {score.name: score for score in scores}


def agree(found, theirs):
    pairs = {
        "FID": "frechet_inception_distance",
        "IS": "inception_score_mean",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, name in pairs.items():
        assert found[ours].value == pytest.approx(theirs[name], rel=1e-6), ours
    assert found["IS"].std == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert found["KID"].std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_all_scores_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.evaluation.features.SHARD_SIZE", 32)
    monkeypatch.setattr("rcg.evaluation.features.FIT_ROWS", 50)
    register_feature_extractor("tiny", Tiny)
    folder(tmp_path / "a", 90, 0, 1.0)
    folder(tmp_path / "b", 110, 1, 0.8)
    theirs = calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        feature_extractor="tiny",
        cuda=False,
        save_cpu_ram=True,
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=45,
        verbose=False,
    )
    found = compute_scores(
        tiny_extractor(), folder_images(tmp_path / "a", None), folder_images(tmp_path / "b", None), tmp_path / "cache"
    )
    assert 0.1 < theirs["precision"] < 1
    agree(found, theirs)
    assert found["FID"].std > 0
    assert {name: found[name].over for name in ("FID", "IS", "KID", "recall")} == {
        "FID": "4 resamples of the samples",
        "IS": "10 parts of the samples",
        "KID": "100 subsets of 45 images",
        "recall": "4 resamples of the reference images",
    }


@pytest.mark.slow
def test_inception_scores_are_those_of_torch_fidelity(tmp_path):
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # random weights, so that nothing is downloaded
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    folder(tmp_path / "a", 24, 0, 1.0)
    folder(tmp_path / "b", 24, 1, 0.8)
    theirs = calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
        feature_layer_fid="64",
        feature_layer_kid="64",
        feature_layer_prc="64",
        feature_extractor="inception-v3-compat",
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=12,
        verbose=False,
    )
    extractor = inception_extractor(tmp_path / "inception.pth", "64", torch.device("cpu"))
    warnings = []
    found = compute_scores(
        extractor, *(folder_images(tmp_path / name, None) for name in "ab"), tmp_path / "cache", warnings
    )
    assert "FID-64 is no FID" in warnings[0]
    assert found["FID-64"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)  # singular: theirs
    assert found["KID-64"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert found["precision"].value == theirs["precision"]
    deep = inception_extractor(tmp_path / "inception.pth", "2048", torch.device("cpu"))
    assert deep.taps == ("2048", LOGITS, "spatial")
    batch = next(iter(folder_images(tmp_path / "a", None).batches(range(2))))
    assert {name: tuple(x.shape) for name, x in deep.compute(batch).items()} == {
        "2048": (2, 2048),
        LOGITS: (2, 1008),
        "spatial": (2, 2023),
    }


def test_a_set_is_at_no_distance_from_itself(tmp_path):
    original = folder(tmp_path / "a", 60, 0, 1.0)
    np.savez(tmp_path / "a.npz", arr_0=original.permute(0, 2, 3, 1).numpy())
    found = compute_scores(
        tiny_extractor(), folder_images(tmp_path / "a", None), npz_images(tmp_path / "a.npz"), tmp_path / "cache"
    )
    assert found["FID"].value == pytest.approx(0, abs=1e-10)
    assert found["precision"].value == found["recall"].value == found["coverage"].value == 1


def test_batches_and_folders_hold_the_same_bytes(tmp_path):
    original = folder(tmp_path / "a", 5, 0, 1.0)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", arr_0=original.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(5))
        source = npz_images(tmp_path / "a.npz")
        assert (len(source), source.size) == (5, 16)
        assert torch.equal(next(source.batches([3, 0, 4])).images, original[[3, 0, 4]])
    assert torch.equal(next(folder_images(tmp_path / "a", None).batches(range(5))).images, original)


def test_published_statistics_stand_for_their_images(tmp_path):
    extractor = tiny_extractor()
    folder(tmp_path / "a", 60, 0, 1.0)
    real = folder(tmp_path / "b", 70, 1, 0.8)
    features = Tiny("tiny", ["2048"])(real)[0].double()
    np.savez(tmp_path / "b.npz", mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    reference = read_reference(tmp_path / "b.npz", 16)
    assert reference.images is None
    samples = folder_images(tmp_path / "a", None)
    seen = extract(samples, [extractor], tmp_path / "cache", Accelerator(cpu=True), "samples")
    warnings = []
    published = ReferenceFeatures({}, reference.statistics)
    found = {score.name: score for score in compare_features(extractor, seen["tiny"], published, BOOTSTRAP, warnings)}
    expected = compute_scores(extractor, samples, folder_images(tmp_path / "b", None), tmp_path / "cache")
    assert found["FID"].value == pytest.approx(expected["FID"].value, rel=1e-6)
    assert set(found) == {"FID", "IS"}
    assert "no KID, precision or recall" in warnings[0]


def test_statistics_of_another_layer_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(4), sigma=np.eye(4))
    folder(tmp_path / "a", 20, 0, 1.0)
    seen = extract(
        folder_images(tmp_path / "a", None), [tiny_extractor()], tmp_path / "cache", Accelerator(cpu=True), "samples"
    )
    reference = ReferenceFeatures({}, published_statistics(tmp_path / "other.npz"))
    with pytest.raises(UserError, match="statistics are of 4 features, but FID compares 12"):
        list(compare_features(tiny_extractor(), seen["tiny"], reference, BOOTSTRAP, []))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(4), sigma=np.eye(5))
    with pytest.raises(UserError, match=r"odd.npz: mu \(4,\) float64 and sigma \(5, 5\) float64 are not the mean"):
        published_statistics(tmp_path / "odd.npz")


def test_too_few_images_are_said_to_be_so(tmp_path):
    folder(tmp_path / "a", 10, 0, 1.0)
    folder(tmp_path / "b", 30, 1, 0.8)
    warnings = []
    compute_scores(
        tiny_extractor(),
        folder_images(tmp_path / "a", None),
        folder_images(tmp_path / "b", None),
        tmp_path / "c",
        warnings,
    )
    assert len(warnings) == 1
    assert "FID: 10 samples are too few for 12 features" in warnings[0]


@pytest.mark.parametrize("count", range(1, 10))
def test_figures_of_very_few_images_are_left_out_and_said_to_be(count):
    many = Vectors({"2048": draw(40, 12, 1), LOGITS: draw(40, 5, 2)})
    few = Vectors({tap: x[:count] for tap, x in many.taps.items()})
    for samples, reference in ((few, many), (many, few)):
        warnings = []
        real = ReferenceFeatures({"tiny": reference})
        scores = list(compare_features(tiny_extractor(), samples, real, BOOTSTRAP, warnings))
        names = {score.name for score in scores}
        assert ("FID" in names) == ("KID" in names) == (count > 1)
        assert ("IS" in names) == (samples is many)
        assert ("precision" in names) == (count > 5)
        assert all(math.isfinite(score.value) and (score.std is None or math.isfinite(score.std)) for score in scores)
        for name in {"FID", "IS", "KID", "precision"} - names:
            assert any(name in warning for warning in warnings), name


def test_the_reference_distance_is_of_as_many_images_as_there_are_samples():
    real, validation = (Vectors({"2048": draw(count, 4, seed)}) for count, seed in ((400, 1), (200, 2)))
    found = {count: list(reference_fd(tiny_extractor(), count, validation, ReferenceFeatures({"tiny": real})))
             for count in (1, 20, 200, 201)}  # fmt: skip
    assert not found[1]
    assert not found[201]
    assert found[20][0].name == "FID of 20 validation images"
    assert found[20][0].value > 2 * found[200][0].value, "a distance of fewer images is a larger one"
    chosen = validation.read("2048", 20)
    assert found[20][0].value == pytest.approx(frechet_distance(chosen, real.read("2048")))
    assert "201 validation images, as many as samples, but there are 200" in without_reference_fd(201, 200)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 3, 8, 8), np.uint8), r"arr_0 must be \(N, S, S, 3\) uint8, not \(4, 3, 8, 8\) uint8"),
        (np.zeros((4, 8, 8, 3), np.float32), r"not \(4, 8, 8, 3\) float32"),
        (np.zeros((4, 8), np.uint8), r"not \(4, 8\) uint8"),
    ],
)
def test_a_batch_of_the_wrong_shape_is_refused(tmp_path, array, said):
    np.savez(tmp_path / "odd.npz", arr_0=array)
    with pytest.raises(UserError, match=said):
        npz_images(tmp_path / "odd.npz")


def test_a_file_that_is_no_batch_is_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", other=np.zeros(3))
    with pytest.raises(UserError, match="holds no arr_0"):
        npz_images(tmp_path / "odd.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text.npz is not an .npz file that can be read"):
        npz_images(tmp_path / "text.npz")


def test_a_folder_with_a_broken_file_is_refused(tmp_path):
    folder(tmp_path / "a", 3, 0, 1.0)
    (tmp_path / "a" / "0001.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 unreadable picture, 0001.png .*an evaluation counts every picture"):
        folder_images(tmp_path / "a", None)


def test_some_features_are_sampled_from_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg.evaluation.features.SHARD_SIZE", 8)
    folder(tmp_path / "a", 30, 0, 1.0)
    seen = extract(
        folder_images(tmp_path / "a", None), [tiny_extractor()], tmp_path / "c", Accelerator(cpu=True), "samples"
    )
    every, some = seen["tiny"].read("2048"), seen["tiny"].read("2048", 20)
    positions = [int((every == row).all(1).nonzero()) for row in some]
    assert len(positions) == 20
    assert positions == sorted(set(positions))
    assert {position // 8 for position in positions} == {0, 1, 2, 3}
