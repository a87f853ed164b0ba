"""The installed package works from any folder, whatever other packages and folders are called."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import rcg
from tests.toy import ROOT

SHOW = (
    "import rcg; from rcg.core.registry import ENCODERS, GENERATORS; "
    "print(rcg.__file__, ENCODERS.get('moco_v3').__module__, GENERATORS.get('dit').__module__, "
    "*ENCODERS.names(), rcg.Pipeline.__name__)"
)


def show(folder, **environment):
    """Import the package in a process that runs in `folder`, and return what it finds."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=folder, env=environment or None, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def make_package(folder, name):
    """Write a package called like one of our folders, with a module of its own."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "mine.py").write_text("")


@pytest.mark.parametrize("name", ["encoders", "generators"])
def test_a_folder_of_the_users_own_hides_no_plug_in(name, tmp_path):
    make_package(tmp_path, name)
    _, encoder, generator, *names = show(tmp_path)
    assert (encoder, generator) == ("rcg.encoders.moco_v3", "rcg.generators.dit")
    assert "mine" not in names


@pytest.mark.parametrize("name", ["encoders", "generators"])
def test_an_installed_package_of_that_name_hides_no_plug_in(name, tmp_path):
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    make_package(site, name)
    folder.mkdir()
    _, encoder, generator, *names = show(folder, PYTHONPATH=str(site))
    assert (encoder, generator) == ("rcg.encoders.moco_v3", "rcg.generators.dit")
    assert "mine" not in names


def kept_for_docker():
    """Return the files and folders that .dockerignore leaves for the image."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [ROOT / line[1:] for line in lines if line.startswith("!")]


def test_the_image_is_made_of_what_there_is_and_starts_the_command():
    assert [path for path in kept_for_docker() if not path.exists()] == []
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["rcg"]' in lines


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (rcg.__version__, "MIT")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_issue_templates_ask_for_what_is_needed():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text())
        assert template["name"]
        assert template["description"]
        assert all(field["attributes"]["label"] for field in template["body"])


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(tmp_path):
    source = tmp_path / "source"  # a build leaves files in the folder that it builds from
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "tests"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert sorted(path.name for path in installed.iterdir() if path.is_dir() and "dist-info" not in path.name) == [
        "rcg"
    ]
    assert (installed / "rcg" / "py.typed").is_file()
    folders = ("configs", "encoders", "generators", "tools")
    for package, origin in (*zip(folders, folders, strict=True), ("", "rcg")):
        folder = installed / "rcg" / package
        files = {
            path.relative_to(ROOT / origin) for path in (ROOT / origin).rglob("*.*") if "__pycache__" not in path.parts
        }
        assert files <= {path.relative_to(folder) for path in folder.rglob("*.*")}
    file, encoder, generator, *_ = show(tmp_path, PYTHONPATH=str(installed))
    assert file == str(installed / "rcg" / "__init__.py")
    assert (encoder, generator) == ("rcg.encoders.moco_v3", "rcg.generators.dit")


@pytest.mark.slow
def test_the_command_works_in_a_fresh_environment(tmp_path):
    source, fresh, elsewhere = tmp_path / "source", tmp_path / "fresh", tmp_path / "elsewhere"
    for path in kept_for_docker():  # the Dockerfile installs from these alone
        copy = shutil.copytree if path.is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(path, source / path.name)
    venv.create(fresh)
    pip = [sys.executable, "-m", "pip", "--python", str(fresh / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(source)], check=True)
    make_package(elsewhere, "encoders")
    # The other libraries are those of this environment, whose own rcg is found through a file that is not read here.
    environment = {"PYTHONPATH": sysconfig.get_path("purelib"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def rcg(*arguments):
        command = [str(fresh / "bin" / "rcg"), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    configs = Path(rcg("configs").strip())
    assert configs.is_relative_to(fresh)
    assert "usage: sample.py" in rcg("sample", "--help")
    rcg("train-encoder", str(configs / "digits.yaml"), "run=run", "encoder.train.steps=2", "encoder.train.batch_size=8")
    assert (elsewhere / "run" / "encoder").is_dir()
