"""The text of `--help` about sections and keys, taken from the schemas themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from rcg.config.base import Config, component_of
from rcg.config.experiment import Experiment
from rcg.config.sections import AutoencoderConfig, TrainableAutoencoderConfig
from rcg.core.registry import Registry


def describe_config() -> str:
    """Describe the sections of an experiment for `--help`."""
    lines = ["sections and keys (any of them can follow the file as an override, section.key=value):"]
    for section, schema, registry in _sections("", Experiment, None):
        lines.append(f"\n{section or 'experiment'}: {(schema.__doc__ or '').splitlines()[0]}")
        lines += [_line(schema, key, registry) for key in schema.model_fields]
    lines.append("\nEach component adds keys of its own; its file documents them.")
    return "\n".join(lines)


def _sections(
    path: str, schema: type[Config], registry: Registry[Any] | None
) -> Iterator[tuple[str, type[Config], Registry[Any] | None]]:
    """Yield a section and all sections in it: its path, its schema, and where its name is looked up."""
    yield path, schema, registry
    for key, field in schema.model_fields.items():
        component = component_of(field)
        if component is not None:
            inner: Any = TrainableAutoencoderConfig if component.base is AutoencoderConfig else component.base
        else:
            types = [field.annotation, *get_args(field.annotation)]
            inner = next((item for item in types if isinstance(item, type) and issubclass(item, Config)), None)
        if inner is not None:
            registry = None if component is None else component.registry
            yield from _sections(f"{path}.{key}".lstrip("."), inner, registry)


def _line(schema: type[Config], key: str, registry: Registry[Any] | None) -> str:
    field = schema.model_fields[key]
    choices = f" One of: {', '.join(registry.names())}." if registry and key == "name" else ""
    default = "" if field.is_required() or isinstance(field.default, Config) else _as_yaml(field.default)
    return f"  {key:19} {_meaning(schema, key)}{choices}{default}"


def _meaning(schema: type[Config], key: str) -> str:
    """Return on one line what a key means; a section that only changes a default leaves that to those it extends."""
    bases = (base for base in schema.__mro__ if issubclass(base, Config))
    fields = (base.model_fields[key] for base in bases if key in base.model_fields)
    return " ".join(next((field.description for field in fields if field.description), "").split())


def _as_yaml(default: Any) -> str:
    """Write a default as a person would in YAML."""
    return f" [{default if isinstance(default, str) else json.dumps(default)}]"
