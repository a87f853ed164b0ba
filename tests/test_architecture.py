"""The rules of the architecture that `lint-imports` does not keep, read off the source; and what imports cost."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from rcg.core.registry import AUTOENCODERS, CONVERTERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS
from tests.toy import ROOT

FOLDERS = {"rcg": ROOT / "rcg", "rcg.encoders": ROOT / "encoders", "rcg.generators": ROOT / "generators"}
"""Packages, and the folders that hold them in a checkout."""
REGISTRIES = (AUTOENCODERS, CONVERTERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS)
HEAVY = ("torch", "torchvision", "timm", "accelerate", "sklearn", "matplotlib", "scipy", "torch_fidelity", "diffusers")
"""Libraries that take long to load."""
ROOT_ENTRIES = 15


def modules():
    """Return the path of every module by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(name, path):
    """Return the modules that a module imports from, `from a import b` as `a` and `a.b`."""
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", modules())
def test_no_module_imports_a_private_module_of_another_package(name):
    package = name.rpartition(".")[0]
    for target in imports(name, modules()[name]):
        owner, _, last = target.rpartition(".")
        if target.startswith("rcg.") and last.startswith("_") and not last.startswith("__"):
            assert (package + ".").startswith(owner + ".") or owner in (name, package), f"{name} imports {target}"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.package)
def test_no_plug_in_imports_another(registry):
    plug_ins = {f"{registry.package}.{name}" for name in registry.names()}
    for name in sorted(plug_ins):
        others = {target for target in imports(name, modules()[name]) if target in plug_ins - {name}}
        assert not others


def text_files(path):
    """Return the line and the source of each call in a module that opens a text file without naming its encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        is_text = name in ("read_text", "write_text") or (name == "open" and any(mode in "rwax" for mode in modes))
        is_text |= ast.unparse(node.func) == "open" and not any("b" in mode for mode in modes)
        if is_text and "encoding" not in {keyword.arg for keyword in node.keywords}:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def test_text_files_are_utf_8_whatever_the_locale_says():
    paths = [*modules().values(), *(ROOT / "tools").glob("*.py")]
    assert [line for path in paths for line in text_files(path)] == []


def test_the_root_of_the_package_stays_small():
    entries = [path.name for path in (ROOT / "rcg").iterdir() if not path.name.startswith(("_", ".", "py.typed"))]
    assert len(entries) <= ROOT_ENTRIES, sorted(entries)


def test_every_folder_of_code_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    installed = set(config["options"]["packages"].split())
    folders = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert installed == folders | {"rcg.configs", "rcg.tools"}  # files for the command rcg, without modules


def test_a_command_line_loads_no_heavy_library():
    code = f"import sys, rcg, rcg.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_library():
    # One process for all tools: to start one for each would take seconds. The first that loads one is named.
    code = (
        f"import glob, runpy, sys\n"
        f"for tool in sorted(glob.glob('tools/*.py')):\n"
        f"    sys.argv = [tool, '--help']\n"
        f"    try:\n        runpy.run_path(tool, run_name='__main__')\n"
        f"    except SystemExit as stop:\n        assert stop.code == 0, tool\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        f"    assert not loaded, (tool, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(list((ROOT / "tools").glob("*.py")))


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("test_*.py"):
        targets = set(imports(path.stem, path))
        assert not {target for target in targets if target.startswith("tests.") and ".test_" in target}, path


@pytest.mark.parametrize("folder", ["rcg", "encoders", "generators", "tools"])
def test_text_files_are_utf_8_whatever_the_locale(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            opens_text = node.func.attr == "open" and any("b" not in mode for mode in modes)
            if node.func.attr in ("read_text", "write_text") or opens_text:
                assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path}:{node.lineno}"
