"""A miniature experiment on bundled digits: every stage takes a second."""

import subprocess
import sys
from pathlib import Path

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
        section[key] = value
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def tool(name, *arguments, **options):
    """Run a tool as a user does, and return the finished process."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
