"""The examples of CONTRIBUTING.md, unedited, pass the sweeps of their registries, are listed, train and sample."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.toy import ROOT

BLOCK = re.compile(r"```python\n# (?P<path>[a-z/]+\.py)\n(?P<code>.*?)```", re.DOTALL)
SWEEPS = ("data/datasets/test_every_dataset.py", "encoders/test_every_encoder.py", "generators/test_every_generator.py")
EXPERIMENT = {
    "data": {"name": "stripes", "image_size": 16},
    "encoder": {"name": "moments"},
    "rdm": {"width": 16, "depth": 2, "train": {"steps": 5, "batch_size": 8, "precision": "no", "tracker": "none"}},
    "generator": {"name": "convnet", "train": {"steps": 5, "batch_size": 8, "precision": "no", "tracker": "none"}},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the program in the layout that is installed, with the examples in their folders."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (("rcg", "rcg"), ("encoders", "rcg/encoders"), ("generators", "rcg/generators")):
        shutil.copytree(ROOT / source, folder / target, ignore=ignored)
    for name in ("tools", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    names = []
    for block in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()):
        path = re.sub(r"^(encoders|generators)/", r"rcg/\1/", block["path"])
        (folder / path).write_text(block["code"])
        names.append(block["path"])
    assert names == ["rcg/data/datasets/stripes.py", "encoders/moments.py", "generators/convnet.py"]
    return folder


def run(checkout, *command):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def test_the_examples_pass_the_sweeps_of_their_registries(checkout):
    sweeps = [f"tests/{sweep}" for sweep in SWEEPS]
    chosen = ["-k", "stripes or moments or convnet", "-v", "-p", "no:cacheprovider", "--rootdir", "."]
    done = run(checkout, "-m", "pytest", *sweeps, *chosen)
    assert done.returncode == 0, done.stdout
    for name in ("stripes", "moments", "convnet"):
        assert re.search(rf"::test_\w+\[.*{name}.*\] PASSED", done.stdout), done.stdout


def test_the_example_encoder_is_listed(checkout):
    listed = run(checkout, "tools/list_encoders.py", "moments")
    assert listed.returncode == 0, listed.stderr
    assert "moments" in listed.stdout


def test_the_examples_train_and_sample(checkout, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({**EXPERIMENT, "run": str(tmp_path / "run")}))
    for command in (
        ("tools/train_rdm.py", path),
        ("tools/train_pixel.py", path),
        ("tools/sample.py", tmp_path / "run", "--num", "2", "--steps", "3"),
    ):
        done = run(checkout, *map(str, command))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "gallery" / "gallery.png").is_file()
