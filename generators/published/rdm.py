"""The published RDM checkpoints (RCG): an averaged network, its live twin, the schedule, and the frozen encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from rcg.generators.published import _encoder
from rcg.generators.published._files import KEPT, inverse, swap
from rcg.generators.published._rcg import LABELS, average_name, schedule

from rcg.core import checkpoint
from rcg.core import pretrained as weights
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, NETWORKS
from rcg.diffusion.model import build

OUTSIDE = {"time_embed": "time", "input_proj": "input", "out.0": "norm", "out.2": "output"}
BLOCK = {
    "in_layers.0": "norm_in",
    "in_layers.2": "linear_in",
    "emb_layers.1": "time",
    "context_layers.1": "label",
    "out_layers.0": "norm_out",
    "out_layers.3": "linear_out",
}
"""The original names of layers, outside of the residual blocks and in them, and ours."""
NETWORK = "model.diffusion_model."


@CONVERTERS.register
class RDM:
    """Reads and writes the training checkpoints of `main_rdm.py`."""

    @staticmethod
    def read(path: Path, run: Path) -> list[Path]:
        """Turn an original checkpoint into `run`/rdm and `run`/encoder, and return what was written.

        Raises:
            UserError: the file is not an RDM's, or its tensors do not fit the published network.
        """
        tensors = weights.state_dict(weights.read(path))
        if f"{NETWORK}input_proj.weight" not in tensors or "model_ema.num_updates" not in tensors:
            raise UserError(f"{path} is not an RDM checkpoint: it has no {NETWORK}input_proj.weight with its average")
        encoder = _encoder.read(tensors, path)
        width, dim = tensors[f"{NETWORK}input_proj.weight"].shape
        conditional = f"{NETWORK}res_blocks.0.context_layers.1.weight" in tensors
        space = _encoder.space(encoder, dim, path)
        config = {
            "name": "rep_mlp",
            "width": width,
            "depth": len({key.split(".")[3] for key in tensors if key.startswith(f"{NETWORK}res_blocks.")}),
            "time_width": tensors[f"{NETWORK}time_embed.0.weight"].shape[0],
            "label_width": tensors[LABELS].shape[1],
            "condition": "class" if conditional else "none",
            "condition_dropout": 0.0,
            "process": {"name": "gaussian", "schedule": "sqrt_linear", "predict": "x0"},
            "sampler": {"name": "ddim", "steps": 250, "eta": 1.0, "spacing": "rcg"},
        }
        network = NETWORKS.get("rep_mlp")
        labels = Space((), vocab=len(tensors[LABELS]), id="labels") if conditional else None
        model = build(network.Config.model_validate(config), network, space, labels)
        live = {our_name(key): value for key, value in tensors.items() if key.startswith(NETWORK)}
        average = {our_name(key): tensors[average_name(key)] for key in tensors if key.startswith(NETWORK)}
        if conditional:  # ours has one more row, the null label, which these models never saw
            table = torch.cat([tensors[LABELS], torch.zeros(1, tensors[LABELS].shape[1])])
            average["network.label.embed.weight"] = table
        weights.fit(model, average, path)
        facts = {
            "data": space.to_json(),
            "cond": labels.to_json() if labels else None,
            "classes": [str(i) for i in range(len(tensors[LABELS]))] if conditional else [],
            "ema_updates": int(tensors["model_ema.num_updates"]),
            "ema_decay": float(tensors["model_ema.decay"]),
        }
        written = [run / "rdm" / checkpoint.FILE, run / "rdm" / KEPT]
        checkpoint.save(written[0], checkpoint.Part("rdm", model.config.model_dump(mode="json"), facts, average))
        checkpoint.save_tensors(written[1], live | ({} if conditional else {"table": tensors[LABELS]}), {})
        if encoder:
            written.append(_encoder.save(encoder, run))
        return written

    @staticmethod
    def write(run: Path, path: Path) -> None:
        """Turn `run`/rdm, and `run`/encoder where there is one, into an original checkpoint.

        Without the live weights of a converted file the averaged ones stand in for them.
        """
        part = checkpoint.load(run / "rdm" / checkpoint.FILE)
        if part.kind != "rdm" or part.config["name"] != "rep_mlp":
            raise UserError(f"{run / 'rdm'} holds no network that the original code could load")
        live = dict(part.tensors)
        if (run / "rdm" / KEPT).is_file():
            live |= checkpoint.load(run / "rdm" / KEPT).tensors
        table = live.pop("network.label.embed.weight", None)
        unused = live.pop("table", torch.zeros(1, part.config["label_width"]))
        found = schedule()
        for key, value in live.items():
            theirs = their_name(key)
            found[theirs] = value
            found[average_name(theirs)] = part.tensors[key]
        found["model_ema.decay"] = torch.tensor(part.facts.get("ema_decay", 0.9999))
        found["model_ema.num_updates"] = torch.tensor(part.facts.get("ema_updates", 0), dtype=torch.int32)
        found[LABELS] = unused if table is None else table[:-1]
        found |= _encoder.original(run)
        with checkpoint.atomic(path) as temporary:
            torch.save({"model": found, "model_ema": None, "optimizer": None, "epoch": 0, "scaler": None}, temporary)


def our_name(key: str) -> str:
    """Return our name of an original tensor `model.diffusion_model. ...`."""
    name = key.removeprefix(NETWORK)
    if name.startswith("res_blocks."):
        _, index, inner = name.split(".", 2)
        return f"network.blocks.{index}.{swap(inner, BLOCK)}"
    return f"network.{swap(name, OUTSIDE)}"


def their_name(key: str) -> str:
    """Return the original name of a tensor of ours, `network. ...`."""
    name = key.removeprefix("network.")
    if name.startswith("blocks."):
        _, index, inner = name.split(".", 2)
        return f"{NETWORK}res_blocks.{index}.{swap(inner, inverse(BLOCK))}"
    return NETWORK + swap(name, inverse(OUTSIDE))
