"""The published RDM checkpoints (RCG): an averaged network, its live twin, the schedule, and the frozen encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from rcg.core import pretrained
from rcg.core.contracts import Space
from rcg.core.errors import UserError
from rcg.core.registry import CONVERTERS, NETWORKS
from rcg.diffusion.model import build
from rcg.encoding.run_folder import RunFolder
from rcg.generators.published import _encoder, _files, _rcg
from rcg.generators.published._converter import Converter
from rcg.generators.published._rcg import DECAY, LABELS, NETWORK, UPDATES, average_name

NAMES = {
    "time_embed": "network.time",
    "input_proj": "network.input",
    "res_blocks.*.in_layers.0": "network.blocks.*.norm_in",
    "res_blocks.*.in_layers.2": "network.blocks.*.linear_in",
    "res_blocks.*.emb_layers.1": "network.blocks.*.time",
    "res_blocks.*.context_layers.1": "network.blocks.*.label",
    "res_blocks.*.out_layers.0": "network.blocks.*.norm_out",
    "res_blocks.*.out_layers.3": "network.blocks.*.linear_out",
    "out.0": "network.norm",
    "out.2": "network.output",
}
"""The original names of layers, and ours."""
TABLE, UNUSED = "network.label.embed.weight", "table"
"""Our table of classes, and our name for the table that an unconditional model holds without using it."""


@CONVERTERS.register
class RDMConverter(Converter):
    """Reads and writes the training checkpoints of `main_rdm.py`."""

    options = frozenset({"encoder_heads"})

    def read(self, path: Path, run: RunFolder) -> list[Path]:
        """Turn an original checkpoint into the run's RDM and encoder, and return the files that were written.

        Raises:
            UserError: the file is not an RDM's, or its tensors do not fit the published network.
        """
        tensors = pretrained.read_weights(path)
        if f"{NETWORK}input_proj.weight" not in tensors or UPDATES not in tensors:
            raise UserError(f"{path} is not an RDM checkpoint: it has no {NETWORK}input_proj.weight with its average")
        # The neighbors.
        encoder = _encoder.read(tensors, self.encoder_heads, path)
        width, dim = tensors[f"{NETWORK}input_proj.weight"].shape
        space = _encoder.space(encoder, dim, path)
        labels = None
        if f"{NETWORK}res_blocks.0.context_layers.1.weight" in tensors:
            labels = Space((), vocab=len(tensors[LABELS]), id="labels")
        # The network.
        network = NETWORKS.get("rep_mlp")
        config = network.Config(
            width=width,
            depth=_files.count(tensors, f"{NETWORK}res_blocks"),
            time_width=tensors[f"{NETWORK}time_embed.0.weight"].shape[0],
            label_width=tensors[LABELS].shape[1],
            condition="class" if labels else "none",
            condition_dropout=0.0,
            process={"name": "gaussian", "schedule": "sqrt_linear", "predict": "x0"},
            sampler={"name": "ddim", "steps": 250, "eta": 1.0, "spacing": "rcg"},
        )
        model = build(config, network, space, labels)
        # The weights, and tensors that only the original format needs.
        live = {our_name(key): value for key, value in tensors.items() if key.startswith(NETWORK)}
        average = {our_name(key): tensors[average_name(key)] for key in tensors if key.startswith(NETWORK)}
        if labels:
            average[TABLE] = _rcg.with_null_row(tensors[LABELS])
        else:
            live[UNUSED] = tensors[LABELS]
        details = {"ema_updates": int(tensors[UPDATES]), "ema_decay": float(tensors[DECAY])}
        written = _files.save_model(run.rdm, "rdm", model, average, live, path, details=details)
        return written + _encoder.save(encoder, run)

    def write(self, run: RunFolder, path: Path) -> None:
        """Turn the run's RDM, and its encoder if there is one, into an original checkpoint.

        Without the live weights of a converted file the averaged ones replace them.

        Raises:
            UserError: the original code would sample it as another process, or could not load it or its encoder.
        """
        part = run.rdm.part()
        if part.config.get("name") != "rep_mlp":
            raise UserError(f"{run.rdm.path} holds no network that the original code could load")
        process = {"process.schedule": "sqrt_linear", "process.predict": "x0"}
        _files.check_settings(part, NETWORKS, _files.DIFFUSION | process | {"condition": ("none", "class")})
        ours = {**part.tensors, **_files.load_extra(run.rdm)}
        table = ours.pop(TABLE, None)
        unused = ours.pop(UNUSED, torch.zeros(1, part.config["label_width"]))
        names = _files.inverse(NAMES)
        live = {NETWORK + _files.swap(key, names): value for key, value in ours.items()}
        average = {NETWORK + _files.swap(key, names): part.tensors[key] for key in ours}
        details = part.facts.details
        decay, updates = details.get("ema_decay", 0.9999), details.get("ema_updates", 0)
        content = _rcg.schedule() | _rcg.with_average(live, average, decay, updates) | _encoder.original(run)
        content[LABELS] = unused if table is None else table[:-1]
        _files.write_training(path, content)


def our_name(key: str) -> str:
    """Return our name of an original tensor `model.diffusion_model. ...`."""
    return _files.swap(key.removeprefix(NETWORK), NAMES)
