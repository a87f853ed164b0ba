"""The recorded MAGE of tiny size as an original checkpoint, and converted."""

import argparse
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rcg.core.registry import GENERATORS
from rcg.diffusion.model import restore
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published.mage import SIZES, Size
from tests.parity import state
from tests.toy import tool

SIZES[32] = Size(4, 2, 6.0)  # the recorded network


def tiny(condition="representation"):
    """Return the recorded network's state, under another condition if asked; its encoder is of no published size."""
    tensors = {k: v for k, v in state("mage_train_forward").items() if not k.startswith("pretrained_encoder.")}
    if condition != "representation":
        for name in ("weight", "bias"):
            del tensors[f"latent_prior_proj.{name}"]
    if condition == "class":
        tensors["class_emb.weight"] = torch.arange(32000.0).view(1000, 32)
    return tensors | {f"vqgan.{key}": value for key, value in state("mage_vqgan_tiny").items()}


def save(tensors, path):
    """Write an original checkpoint."""
    torch.save({"model": tensors, "model_ema": None, "epoch": 199, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


@cache
def converted(condition="representation"):
    """Return the parts of the recorded checkpoint: mage and its tokenizer."""
    with TemporaryDirectory() as folder:
        path, run = save(tiny(condition), Path(folder) / "tiny.pth"), RunFolder(Path(folder) / "run")
        done = tool("convert", "mage", path, run.path)
        assert done.returncode == 0, done.stderr
        name = "mage" if condition == "representation" else f"mage-{condition}"
        return run.stage_folder(name).part(), run.autoencoder.part()


def published(condition="representation"):
    """Return the recorded MAGE, converted, without dropout."""
    model = restore(converted(condition)[0], GENERATORS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
