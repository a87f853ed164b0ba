"""Where a training starts: at random, or at the weights of a part, ours, converted or published (`train.init_from`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from rcg.config import differences
from rcg.core import checkpoint, pretrained
from rcg.core.checkpoint import Facts
from rcg.core.console import say
from rcg.core.errors import UserError
from rcg.encoding.run_folder import find_part

LEAST = 0.5
"""Smallest share of a module's values that have to come from the weights it starts with."""
_LISTED = 3
"""Most tensors that a sentence lists."""


class Weights(NamedTuple):
    """Weights to start with: of a part of ours, or of a published file, which says nothing of itself."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = {}
    facts: Facts = Facts()


@dataclass(frozen=True)
class Initial:
    """Where the module of a stage starts.

    Attributes:
        kind: of the part, `encoder`, `autoencoder`, `rdm` or `generator`.
        key: of the section whose `train.init_from` says where, for people.
        text: what it says; None: at random.
    """

    kind: str
    key: str
    text: str | None

    def check(self, config: Mapping[str, Any], overwritten: Path | None) -> None:
        """Refuse weights that are not there, that another network has, or that are about to be deleted.

        Args:
            config: the dumped section of the network.
            overwritten: the folder that the training replaces.

        Raises:
            UserError: the weights cannot be where training starts.
        """
        if self.text is None:
            return
        path = self._path()
        if overwritten is not None and path.resolve().is_relative_to(overwritten.resolve()):
            raise UserError(
                f"{self.key}.train.init_from is {self.text}, in the folder that --overwrite replaces: copy the file to "
                f"another place first"
            )
        if not checkpoint.is_part(path):
            if self.kind in ("rdm", "generator"):
                raise UserError(
                    f"{self.key}.train.init_from is {self.text}, which is no part of rcg: convert a published file "
                    f"first (python tools/convert.py {config['name'] if self.kind == 'generator' else 'rdm'} FILE RUN)"
                )
            return
        part = checkpoint.load(path, weights=False)
        if part.kind != self.kind:
            raise UserError(f"{self.key}.train.init_from is {self.text}, which holds a {part.kind}, not a {self.kind}")
        if part.config.get("name") != config["name"]:
            raise UserError(
                f"{self.key}.train.init_from is {self.text}, which holds a {part.config.get('name')}: set "
                f"{self.key}.name={part.config.get('name')}, or choose the weights of a {config['name']}"
            )

    def load(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        facts: Facts,
        rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        least: float = LEAST,
    ) -> None:
        """Load what fits into `module`, and say what does not; a module without memory finds out whether enough would.

        Args:
            module: what is trained, at random weights.
            config: its dumped section.
            facts: what its part will say of its neighbors.
            rename: turns the names of a published file into ours.
            least: smallest share of the module's values that have to fit.

        Raises:
            UserError: too little fits.
        """
        if self.text is None:
            return
        weights = self._read(rename)
        own = module.state_dict()
        fitting = {name: x for name, x in weights.tensors.items() if name in own and own[name].shape == x.shape}
        share = sum(x.numel() for x in fitting.values()) / max(1, sum(x.numel() for x in own.values()))
        left = [_complaint(name, value, weights.tensors) for name, value in own.items() if name not in fitting]
        others = list(_differences(weights, config, facts))
        if share < least:
            reasons = "; ".join([*others[:_LISTED], *left[:_LISTED]])
            raise UserError(
                f"{self.key}.train.init_from is {self.text}, of whose weights only {share:.0%} of this {self.kind} can "
                f"be made: {reasons}"
            )
        if next(module.parameters()).is_meta:
            return
        module.load_state_dict(fitting, strict=False)
        said = f"{weights.path}: starts with {len(fitting)} of {len(own)} tensors"
        unused = [name for name in weights.tensors if name not in own]
        for names, what in ((left, "at random start"), (unused, "without a place here are")):
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            said += f"; {what} {', '.join(names[:_LISTED])}{more}" if names else ""
        say(said + (f"; mind that it was trained otherwise: {', '.join(others)}" if others else ""))

    def _path(self) -> Path:
        assert self.text is not None
        return find_part(self.text, self.kind, f"{self.key}.train.init_from is {self.text}")

    def _read(self, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None) -> Weights:
        path = self._path()
        if checkpoint.is_part(path):
            part = checkpoint.load(path)
            return Weights(path, part.tensors, part.config, part.facts)
        assert rename is not None
        return Weights(path, rename(pretrained.read_weights(path)))


def _differences(weights: Weights, config: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """Yield what differs in kind between the weights' training and this one, beyond sizes of tensors."""
    saved = weights.facts
    for key in ("process", "condition", "quantizer"):
        if key in weights.config and key in config:
            yield from differences(weights.config[key], config[key], key)
    spaces = (("data", saved.data, facts.data), ("condition", saved.cond, facts.cond), ("z", saved.z, facts.z))
    for name, before, now in spaces:
        if before is not None and now is not None and before != now:
            yield f"{name}: {before} -> {now}"
    if saved.classes and facts.classes and saved.classes != facts.classes:
        yield f"classes: {len(saved.classes)} -> {len(facts.classes)}, of other names or in another order"
    if saved.image_size and facts.image_size and saved.image_size != facts.image_size:
        yield f"image_size: {saved.image_size} -> {facts.image_size}"


def _complaint(name: str, value: Tensor, tensors: Mapping[str, Tensor]) -> str:
    """Say why a tensor of the module is not among those of a file."""
    if name not in tensors:
        return f"{name} (it is not there)"
    return f"{name} (it is {tuple(tensors[name].shape)} there, {tuple(value.shape)} here)"
