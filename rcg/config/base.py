"""The machinery of configuration: frozen sections, components found by name, and the roles of fields."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rcg.config.parsing import Unquoted, shortened
from rcg.core.errors import nearest
from rcg.core.registry import Registry

Fraction = Annotated[float, Field(ge=0, le=1)]
Depth = Annotated[int, Field(gt=0, le=1000)]
"""Blocks, one after the other. Bounds keep what is read from files and command lines from filling the memory."""
Width = Annotated[int, Field(gt=0, le=2**17)]
"""Channels, features, heads or classes."""
Side = Annotated[int, Field(gt=0, le=2**14)]
"""Side in pixels."""
ImageSize = Annotated[int, Field(ge=4, le=2**14)]
"""Side of the images in pixels."""
Steps = Annotated[int, Field(gt=0, le=100_000)]
"""Network evaluations, or levels."""
Batch = Annotated[int, Field(gt=0, le=2**20)]
"""Samples of a step."""


class Role(Enum):
    """What a field means for a finished step, for finished weights, and for another component."""

    RUNTIME = "does not affect steps already taken: it may change when a training is resumed"
    ORIGIN = "says where weights came from, not what they compute"
    OWN = "belongs to the component that is named: another one does not take it over"


RUNTIME, ORIGIN, OWN = Role.RUNTIME, Role.ORIGIN, Role.OWN

RENAMED = {
    "accumulate": "grad_accum_steps",
    "checkpoint": "grad_checkpointing",
    "clip": "grad_clip",
    "ema": "ema_decay",
    "normalise": "normalize",
    "output_trains_words": "tie_embedding_grad",
    "quantiser": "quantizer",
    "sampling_room": "min_encoder_tokens",
    "start": "init_from",
    "workers": "num_workers",
}
"""Keys of earlier versions, and what they are called now."""


class Config(BaseModel):
    """A frozen value that a person may write in YAML.

    Attributes:
        defaults: settings of this config's sections, by the section's key; each has a `name`. They fill in what the
            YAML leaves out, unless it names another component there. A class's entry replaces that of its bases.
        exclusive: pairs of keys, both ways round, of which one at most may be given: to override one drops the other.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    exclusive: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def section_defaults(cls) -> dict[str, Mapping[str, Any]]:
        """Return the defaults of all sections; a class's entry replaces that of its bases."""
        merged: dict[str, Mapping[str, Any]] = {}
        for base in reversed(cls.__mro__):
            merged |= vars(base).get("defaults", {})
        return merged

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """Refuse unknown keys, read what was written as the fields mean it, and fill sections in."""
        if not isinstance(value, dict):
            return value
        read = {}
        for key, item in value.items():
            if key not in cls.model_fields:
                raise _refusal(key, f"unknown key; {cls._hint(str(key))}")
            try:
                read[key] = as_meant(item, cls.model_fields[key].annotation)
            except ValueError as error:
                raise _refusal(key, str(error)) from None
        filled = {key: _filled(read.get(key, {}), default) for key, default in cls.section_defaults().items()}
        return {**read, **filled}

    @classmethod
    def _hint(cls, key: str) -> str:
        new = RENAMED.get(key)
        return f"it is called {new!r} now" if new in cls.model_fields else nearest(key, cls.model_fields)


def _refusal(key: object, problem: str) -> PydanticCustomError:
    """Return an error that names a key of the section that is being validated."""
    return PydanticCustomError("key", "{problem}", {"key": str(key), "problem": problem})


def alternatives(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows, and the words of its `Literal`s."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*(alternatives(arg) for arg in get_args(annotation)))
    return set(get_args(annotation)) if get_origin(annotation) is Literal else {annotation}


def takes_text(annotation: Any) -> bool:
    """Whether a field takes text just as it was written: it is text, a path or one of some words."""
    allowed = alternatives(annotation)
    words = {item for item in allowed if isinstance(item, str)}
    return bool(words or allowed & {str, Path}) and not allowed & {bool, int, float}


def as_meant(value: Any, annotation: Any) -> Any:
    """Return a value as a field of some annotation means it: YAML alone does not know whether `007` is a name.

    Raises:
        ValueError: it is a truth value where a number is expected, or a number beyond 64 bits.
    """
    allowed = alternatives(annotation)
    if isinstance(value, list):
        items = next((get_args(item) for item in allowed if get_origin(item) in (tuple, list)), (Any,))
        return [as_meant(item, items[min(i, len(items) - 1)]) for i, item in enumerate(value)]
    if isinstance(value, dict):
        if _is_section(allowed):
            return value  # it reads its own keys
        content = next((get_args(item)[1] for item in allowed if get_origin(item) is dict), Any)
        return {key: as_meant(item, content) for key, item in value.items()}
    if isinstance(value, Unquoted):
        if value.lower() == "none" and NoneType in allowed and not allowed & {str, str(value)}:
            return None
        value = str(value) if takes_text(annotation) or _is_section(allowed) else value.resolved()
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"expected text, got {shortened(value)}")
    if isinstance(value, str) and allowed & {str, Path}:
        return os.path.expanduser(value)
    if isinstance(value, bool) and allowed & {int, float} and bool not in allowed:
        raise ValueError(f"expected a number, got {str(value).lower()}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"expected a number below 2^63, got {shortened(value)}")
    return value


def _is_section(allowed: set[Any]) -> bool:
    return any(isinstance(item, type) and issubclass(item, BaseModel) for item in allowed)


def _filled(section: Any, default: Mapping[str, Any]) -> Any:
    """Add the default settings to a section, unless it names another component than they do."""
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, dict) or section.get("name", default["name"]) != default["name"]:
        return section
    return {**default, **section}


class ComponentConfig(Config):
    """The section of a component that a registry finds by `name`."""

    name: str
    """Which one."""


@dataclass(frozen=True)
class Component:
    """Annotates a section that configures a component: it is validated by the `Config` of the class that it names.

    Attributes:
        registry: where the name is looked up.
        base: the schema that the sections of all its components extend.
        presets: the component that has ready settings under names of their own, which its key `preset` takes; a
            section may give such a name, or that component's own keys `preset` and `model`, alone.
    """

    registry: Registry
    base: type[ComponentConfig]
    presets: str | None = None

    def named(self, value: Any) -> Any:
        """Turn a name into a section, and the name of a preset into the component that has it."""
        section = {"name": value} if isinstance(value, str) else value
        if self.presets is None or not isinstance(section, dict):
            return section
        name = section.get("name")
        if name is None and section.keys() & {"preset", "model"}:
            return {**section, "name": self.presets}
        if isinstance(name, str) and name not in self.registry.names() and name in self._preset_names():
            return {**section, "name": self.presets, "preset": name}
        return section

    def _preset_names(self) -> Sequence[str]:
        schema: Any = None if self.presets is None else config_class(self.registry, self.presets)
        return () if schema is None else schema.presets()

    def schema(self, section: Mapping[str, Any]) -> type[Config]:
        """Return the schema of the component that a section names, or of the registry's default.

        Raises:
            PydanticCustomError: it names none, or an unknown one.
        """
        name = section.get("name", self.registry.default)
        if not isinstance(name, str):
            known = ", ".join(self.registry.names())
            raise PydanticCustomError("name", "needs a name; known: {known}", {"known": known})
        if name not in self.registry.names():
            hint = nearest(name, [*self.registry.names(), *get_close_matches(name, self._preset_names())])
            text = f"no {self.registry.kind} is called {shortened(name)}; {hint}"
            raise PydanticCustomError("name", "{text}", {"text": text})
        return config_class(self.registry, name)

    def validate(self, value: Any) -> Any:
        """Turn a name, or a section with keys, into the config of its component."""
        if isinstance(value, Config):
            return value
        section = self.named(value)
        if not isinstance(section, dict):
            raise PydanticCustomError("section", "expected a name or a section with keys")
        try:
            config = self.schema(section).model_validate(section)
        except ValidationError:
            self._refuse_preset_elsewhere(section)
            raise
        weights = section.get("weights")
        if isinstance(weights, str) and not {"/", "."} & set(weights) and weights not in ("none", "pretrained"):
            self._refuse_preset_elsewhere(section)
        return config

    def _refuse_preset_elsewhere(self, section: Mapping[str, Any]) -> None:
        """Raise an error for a preset's name under a key that does not take it (`arch`, `weights`)."""
        names = self._preset_names()
        for key, value in section.items():
            if key not in ("name", "preset", "model") and isinstance(value, str) and value in names:
                raise _refusal(key, f"{value} is a preset of {self.presets}: write {{preset: {value}}}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic validate what `validate` returns."""
        return core_schema.no_info_before_validator_function(self.validate, handler(source))


def config_class(registry: Registry, name: str) -> type[Config]:
    """Return the schema of a component: its `Config`, or the component itself where it is one (a sampler)."""
    component = registry.get(name)
    schema: type[Config] = component if issubclass(component, Config) else component.Config
    return schema


def component_of(field: FieldInfo) -> Component | None:
    """Return what a field says of the components that its section configures, None where it configures none."""
    # In an optional section, Annotated[...] | None, the annotation lies inside the union.
    annotations = [*field.metadata, *(item for arg in get_args(field.annotation) for item in get_args(arg))]
    return next((item for item in annotations if isinstance(item, Component)), None)


def roles(schema: type[Config], key: str) -> set[Role]:
    """Return the roles of a field, those that a base class gave it among them."""
    fields = [base.model_fields.get(key) for base in schema.__mro__ if issubclass(base, Config)]
    return {item for field in fields if field is not None for item in field.metadata if isinstance(item, Role)}


def dump_without(config: Config, *dropped: Role) -> dict[str, Any]:
    """Dump a config as JSON values without the fields of some roles, at any depth."""
    return _strip(config, config.model_dump(mode="json"), set(dropped))


def identity(config: Config) -> dict[str, Any]:
    """Return what decides the output of a component with given weights: all but RUNTIME and ORIGIN."""
    return dump_without(config, RUNTIME, ORIGIN)


def training_identity(config: Config) -> dict[str, Any]:
    """Return what a resumed training has to find unchanged: all but RUNTIME, and of neighbors their identity alone."""
    values = dump_without(config, RUNTIME)
    neighbors = {key: value for key, value in config if isinstance(value, ComponentConfig) and key in values}
    return values | {key: identity(value) for key, value in neighbors.items()}


def _strip(config: Config, values: dict[str, Any], dropped: set[Role]) -> dict[str, Any]:
    kept = {}
    for key in type(config).model_fields:
        if key in values and not dropped & roles(type(config), key):
            value = getattr(config, key)
            kept[key] = _strip(value, values[key], dropped) if isinstance(value, Config) else values[key]
    return kept
