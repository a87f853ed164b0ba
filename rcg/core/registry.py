"""Registries of components: name -> class. The name in YAML is that of the file; a lookup imports this file only."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rcg.core.errors import UserError, nearest

if TYPE_CHECKING:  # names are looked up before torch is needed, which takes seconds to load
    from rcg.core.contracts import Autoencoder, Denoiser, Encoder

Base = TypeVar("Base")
Class = TypeVar("Class", bound=type[Any])


class Registry(Generic[Base]):
    """The components of one kind, subclasses of `Base`: the modules of one package.

    A component registers its class with `@REGISTRY.register` under the name of its file. Files whose name starts with
    an underscore hold shared code and are not components.

    Args:
        kind: the word for such a component in error messages.
        package: the package whose modules are the components.
        default: the component of a section without a name; None: a section needs a name.
    """

    def __init__(self, kind: str, package: str, default: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.default = default
        self._classes: dict[str, type[Base]] = {}

    def register(self, cls: Class) -> Class:
        """Register a class under its module's name; raises `ValueError` for a second class of that name."""
        name = cls.__module__.rpartition(".")[2]
        registered = self._classes.get(name, cls)
        # A module that is imported again defines its class again.
        if (registered.__module__, registered.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{self.kind} {name!r} is registered twice: {registered!r} and {cls!r}")
        self._classes[name] = cls
        return cls

    def names(self) -> list[str]:
        """List all names without importing a component."""
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        modules = {m.name for m in pkgutil.iter_modules(folders) if not m.ispkg and not m.name.startswith("_")}
        return sorted(modules | self._classes.keys())

    def get(self, name: str) -> type[Base]:
        """Return the class called `name`.

        Raises:
            UserError: there is none, with the nearest name; or it needs a library that is not installed.
        """
        if name not in self._classes:
            if importlib.util.find_spec(self.package) is None:
                raise UserError(
                    f"there is no package {self.package}: install rcg (pip install --editable PATH/OF/THE/CHECKOUT) "
                    f"instead of running it from its folder"
                )
            if name not in self.names():
                raise UserError(f"no {self.kind} is called {name!r}; {nearest(name, self.names())}")
            try:
                importlib.import_module(f"{self.package}.{name}")
            except ModuleNotFoundError as error:
                raise UserError(f"the {self.kind} {name} needs {error.name}, which is not installed") from error
        return self._classes[name]


ENCODERS: Registry[Encoder] = Registry("encoder", "rcg.encoders")
GENERATORS: Registry[Denoiser] = Registry("generator", "rcg.generators")
AUTOENCODERS: Registry[Autoencoder] = Registry("autoencoder", "rcg.generators.autoencoders", default="pixels")
NETWORKS: Registry[Denoiser] = Registry("representation network", "rcg.diffusion.networks", default="rep_mlp")
PROCESSES: Registry[Any] = Registry("process", "rcg.diffusion.processes", default="gaussian")
SAMPLERS: Registry[Any] = Registry("sampler", "rcg.diffusion.samplers", default="ddim")
DATASETS: Registry[Any] = Registry("data set", "rcg.data.datasets")
CONVERTERS: Registry[Any] = Registry("converter", "rcg.generators.published")
