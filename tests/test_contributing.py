"""The components that CONTRIBUTING.md shows are written to files as they stand there, and trained."""

import importlib
import re
import sys

import pytest

from rcg import config
from rcg.core.registry import DATASETS, ENCODERS, GENERATORS
from rcg.pipeline import Pipeline
from rcg.training import stages
from tests.toy import ROOT, write

BLOCK = re.compile(r"```python\n# (?P<package>[a-z/]+)/(?P<name>[a-z]+)\.py\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture
def components(tmp_path, monkeypatch):
    """Write the three examples where their packages find them."""
    found = {}
    for block in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()):
        package = block["package"].replace("/", ".")
        folder = tmp_path / package
        folder.mkdir()
        (folder / f"{block['name']}.py").write_text(block["code"])
        module = importlib.import_module(package)
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(folder)])
        monkeypatch.setattr(module.__spec__, "submodule_search_locations", module.__path__)
        found[package] = block["name"]
    yield found
    for registry in (DATASETS, ENCODERS, GENERATORS):
        for name in found.values():
            registry._classes.pop(name, None)
            sys.modules.pop(f"{registry.package}.{name}", None)


def test_the_examples_of_the_guide_train_and_sample(components, tmp_path):
    assert components == {"rcg.data.datasets": "stripes", "encoders": "moments", "generators": "convnet"}
    path = write(
        tmp_path,
        data={"name": "stripes", "image_size": 16},
        encoder={"name": "moments"},
        generator={"name": "convnet", "train": {"steps": 5, "batch_size": 8, "precision": "no", "tracker": "none"}},
    )
    experiment = config.load(path)
    stages.train_rdm(experiment, resume=False, overwrite=False)
    stages.train_generator(experiment, resume=False, overwrite=False)
    images = Pipeline.from_run(experiment.run).sample(range(2), steps=3).images
    assert images.shape == (2, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
