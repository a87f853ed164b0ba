"""A miniature experiment on bundled digits: every stage takes a second."""

import io
import runpy
import struct
import subprocess
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from PIL import Image

from rcg import cli
from rcg.config import Experiment, load_experiment
from rcg.encoding.run_folder import Mode, StageFolder
from rcg.training.stages import STAGES

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
"""A section generator.autoencoder that is trained in seconds."""
KL = {key: value for key, value in TOKENIZER.items() if key != "quantizer"} | {"name": "kl"}
"""The same of continuous latents."""
MAGE = {
    "name": "mage",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "autoencoder": "toy_tokenizer",
    "sampler": {"steps": 4},
    "train": {"steps": 2, "batch_size": 16, "precision": "no", "tracker": "none"},
}
"""A section generator of tokens, for the fixture `toy_autoencoder`."""


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


def train(stage, experiment, *overrides, mode=Mode.START) -> StageFolder:
    """Train one stage of an experiment, or of a YAML file and overrides, in this process; return the stage's folder."""
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment, overrides)
    cli.train_stage(STAGES[stage], experiment, mode)
    return STAGES[stage].folder(experiment)


def snapshot(folder):
    """Return the content of every file under a folder by its path, without the empty file that locks a run."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


def images(folder):
    """Return the pictures that tools/sample.py --save-images wrote into `folder`, in the order of their names."""
    return [np.asarray(Image.open(path)).astype(int) for path in sorted((folder / "images").glob("*.png"))]


def write_bomb(path):
    """Write a small PNG file whose header claims 900,000,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def complaint(done):
    """Return the one sentence with which a tool refused to work, without a traceback and with exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


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
