"""Name -> class. The name in YAML is the name of the file, and looking a name up imports that file only."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any, TypeVar

from rcg.core.errors import UserError, nearest

C = TypeVar("C", bound=type[Any])


class Registry:
    """The components of one kind, found as the modules of one package.

    A component registers its class with `@REGISTRY.register`; it is then known by its file's name. Files whose
    name starts with an underscore hold shared code and are not components.
    """

    def __init__(self, kind: str, package: str, default: str | None = None) -> None:
        """Know the components in `package`; `default` is the one that a section without a name means."""
        self.default = default
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[Any]] = {}

    def register(self, cls: C) -> C:
        """Register a class under its module's name; a second class of that name raises `ValueError`."""
        name = cls.__module__.rpartition(".")[2]
        known = self._classes.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{self.kind} {name!r} is registered twice: {known!r} and {cls!r}")
        self._classes[name] = cls
        return cls

    def names(self) -> list[str]:
        """List the known names without importing anything but the package itself."""
        spec = importlib.util.find_spec(self.package)
        paths = list(spec.submodule_search_locations or []) if spec else []
        found = {m.name for m in pkgutil.iter_modules(paths) if not m.ispkg and not m.name.startswith("_")}
        return sorted(found | self._classes.keys())

    def get(self, name: str) -> Any:
        """Return the class called `name`; raises `UserError` with the nearest name when there is none."""
        if name not in self._classes:
            if name not in self.names():
                raise UserError(f"no {self.kind} is called {name!r}; {nearest(name, self.names())}")
            importlib.import_module(f"{self.package}.{name}")
        return self._classes[name]


ENCODERS = Registry("encoder", "rcg.encoders")
GENERATORS = Registry("generator", "rcg.generators")
AUTOENCODERS = Registry("autoencoder", "rcg.generators.autoencoders", default="pixels")
NETWORKS = Registry("representation network", "rcg.networks", default="rep_mlp")
PROCESSES = Registry("process", "rcg.diffusion.processes", default="gaussian")
SAMPLERS = Registry("sampler", "rcg.diffusion.samplers", default="ddim")
DATASETS = Registry("data set", "rcg.data.datasets")
CONVERTERS = Registry("converter", "rcg.generators.published")
