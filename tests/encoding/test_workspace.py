"""A workspace opens each neighbor once, when somebody asks for it."""

import shutil
from collections import Counter

import pytest
import yaml

from rcg.comparison.study import Study
from rcg.config import load_experiment
from rcg.core.errors import UserError
from rcg.distributed.launch import launch
from rcg.encoding import workspace
from rcg.encoding.workspace import Workspace, first_views
from tests.toy import write


@pytest.fixture
def opened(monkeypatch):
    """How often data sets, encoders, autoencoders and transforms are opened."""
    counts = Counter()
    for name in (
        "load_images",
        "load_encoder",
        "open_encoder",
        "open_autoencoder",
        "Transform",
        "representation_cache",
    ):
        function = getattr(workspace, name)

        def count(*args, name=name, function=function, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(workspace, name, count)
    return counts


def test_nothing_is_opened_before_it_is_needed(toy_copy, opened):
    work = Workspace(load_experiment(toy_copy), launch())
    assert work.image_size == 16
    assert work.generator_folder.path == toy_copy.parent / "run" / "dit"
    assert work.with_generator(work.experiment.generator).run.path == work.run.path
    assert not opened


def test_each_neighbor_is_opened_once(toy_copy, opened):
    work = Workspace(load_experiment(toy_copy), launch())
    for _ in range(3):
        assert work.representation.encoder is work.raw_representation.encoder is work.encoder
        assert work.z("train").views == 1
        assert len(work.z("validation")) == len(work.images.validation) == 20
        assert work.autoencoder.space.id == "pixels"
        assert work.posteriors() is None
    assert opened == {
        "load_images": 1,
        "load_encoder": 1,
        "open_autoencoder": 1,
        "Transform": 1,
        "representation_cache": 2,
    }


def test_a_transform_is_fitted_once_and_then_read_from_the_run(toy_copy, opened, monkeypatch):
    changes = ["normalize=per_dataset", "projection={width: 3}"]
    first = Workspace(load_experiment(toy_copy, changes), launch())
    z = first_views(first.z("train"))
    assert z.shape == (180, 3)
    assert first_views(first.z("train")).equal(z)
    monkeypatch.setattr("rcg.encoding.transform.Transform.fit", lambda *_: pytest.fail("fitted again"))
    again = Workspace(load_experiment(toy_copy, changes), launch())
    assert first_views(again.z("train")).equal(z)
    assert again.representation.space == first.representation.space
    assert opened["Transform"] == opened["load_encoder"] == 2


def test_clusters_are_fitted_once(toy_copy, monkeypatch):
    work = Workspace(load_experiment(toy_copy, ["clusters=3"]), launch())
    first = work.clusters()
    monkeypatch.setattr("rcg.encoding.clusters.fit", lambda *_: pytest.fail("fitted again"))
    again = Workspace(load_experiment(toy_copy, ["clusters=3"]), launch()).clusters()
    assert again.labels.equal(first.labels)
    assert again.space == first.space
    with pytest.raises(UserError, match="clusters is 500, but there are 180 training images"):
        Workspace(load_experiment(toy_copy, ["clusters=500"]), launch()).clusters()


def test_an_encoder_that_is_not_there_or_another_one_is_refused(toy_copy, tmp_path):
    with pytest.raises(UserError, match=r"holds another encoder \(encoder.depth: 1 -> 2\)"):
        _ = Workspace(load_experiment(toy_copy, ["encoder.depth=2"]), launch()).encoder
    elsewhere = load_experiment(toy_copy, [f"run={tmp_path / 'nothing'}"])
    with pytest.raises(
        UserError, match=r"holds no trained encoder and encoder.weights names none: run tools/train_enc"
    ):
        _ = Workspace(elsewhere, launch()).encoder
    assert not (tmp_path / "nothing").exists()


def test_representations_of_another_space_are_refused(toy_copy):
    work = Workspace(load_experiment(toy_copy), launch())
    space = work.representation.space
    real = work.real_data(space)
    assert (len(real.train_z), len(real.validation_z)) == (180, 20)
    work.check_condition(space)
    work.check_condition(None)
    other = Workspace(load_experiment(toy_copy, ["normalize=none"]), launch())
    with pytest.raises(UserError, match="give the configuration that the RDM was trained with"):
        other.real_data(space)
    with pytest.raises(UserError, match="train the generator again"):
        other.check_condition(space)


def test_trainings_know_their_steps_wherever_the_workspace_is_asked(tmp_path):
    path = write(tmp_path)
    values = yaml.safe_load(path.read_text())
    del values["generator"]["train"]["steps"]
    values["generator"]["train"]["epochs"] = 2
    path.write_text(yaml.safe_dump(values))
    work = Workspace(load_experiment(path), launch())
    steps = round(2 * len(work.images.train) / 16)
    study = Study(work, keys=[], plan=None, metrics=None, out=tmp_path, cache=tmp_path, train=None)
    assert study.generator.train.steps == work.experiment.require_generator().train.steps == steps
    assert study.generator.train.epochs == 2


def test_another_encoder_is_refused_before_images_are_encoded(toy_copy, tmp_path):
    space = Workspace(load_experiment(toy_copy, ["normalize=per_dataset"]), launch()).representation.space
    shutil.rmtree(tmp_path / "run" / "cache")
    other = Workspace(load_experiment(toy_copy, ["normalize=per_dataset", "encoder.weights=none"]), launch())
    for refuse in (other.real_data, other.check_condition):
        with pytest.raises(UserError, match=f"representations of {space.id}"):
            refuse(space)
    assert not (tmp_path / "run" / "cache").exists()
