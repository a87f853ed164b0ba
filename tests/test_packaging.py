"""The installed package works from any folder, whatever other packages and folders are called."""

import shutil
import subprocess
import sys
import zipfile

import pytest

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
    for package, origin in (("encoders", "encoders"), ("generators", "generators"), ("", "rcg")):
        folder = installed / "rcg" / package
        files = {
            path.relative_to(ROOT / origin) for path in (ROOT / origin).rglob("*.*") if "__pycache__" not in path.parts
        }
        assert files <= {path.relative_to(folder) for path in folder.rglob("*.*")}
    file, encoder, generator, *_ = show(tmp_path, PYTHONPATH=str(installed))
    assert file == str(installed / "rcg" / "__init__.py")
    assert (encoder, generator) == ("rcg.encoders.moco_v3", "rcg.generators.dit")
