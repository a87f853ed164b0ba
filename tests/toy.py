"""A miniature experiment on bundled digits: every stage takes a second."""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).parents[1]

EXPERIMENT = {
    "data": {"name": "digits", "image_size": 16, "limit": 200},
    "encoder": {
        "name": "moco_v3",
        "arch": "resnet18",
        "width": 4,
        "depth": 1,
        "projector_hidden": 16,
        "projector_dim": 8,
        "train": {"steps": 6, "batch_size": 16, "predictor": 16, "augment": {"jitter": 0, "gray": 0, "flip": False}},
    },
    "rdm": {"width": 16, "depth": 2, "sampler": {"name": "ddim", "steps": 4}, "train": {"steps": 20, "batch_size": 32}},
    "generator": {
        "name": "dit",
        "width": 16,
        "depth": 2,
        "heads": 2,
        "patch": 4,
        "sampler": {"name": "ddim", "steps": 4},
        "train": {"steps": 20, "batch_size": 16},
    },
}
TOKENIZER = {
    "name": "vqgan",
    "width": 32,
    "multipliers": [1, 1],
    "blocks": 1,
    "channels": 4,
    "quantizer": {"codes": 16},
    "train": {"steps": 4, "batch_size": 8, "adversarial": 0, "precision": "no", "tracker": "none"},
}
"""A section generator.autoencoder that is trained in seconds; without its quantizer it fits `kl` as well."""


def write(folder, **changes):
    """Write the experiment, with dotted changes, as YAML; its run lies in the same folder."""
    experiment = yaml.safe_load(yaml.safe_dump(EXPERIMENT)) | {"run": str(folder / "run")}
    for stage in ("encoder", "rdm", "generator"):
        experiment[stage]["train"] |= {"precision": "no", "tracker": "none"}
    for dotted, value in changes.items():
        section = experiment
        *path, key = dotted.split("__")
        for part in path:
            section = section.setdefault(part, {})
        section[key] = deepcopy(value)
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def tool(name, *arguments):
    """Run a tool in this process, as its command line does; return its exit code and what it printed."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"tools/{name}.py", *map(str, arguments)]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def process(name, *arguments):
    """Run a tool as a user does, in a process of its own."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
