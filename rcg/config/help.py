"""The text of `--help` about sections and keys, taken from the schemas themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rcg.config.base import Component, Config, alternatives, component_of
from rcg.config.experiment import Experiment
from rcg.config.sections import AutoencoderConfig, TrainableAutoencoderConfig
from rcg.config.sources import config_of
from rcg.core.errors import UserError

HEAD = "sections and keys (any of them can follow the file as an override, section.key=value):"
OTHERS = "Components add keys of their own; the help of tools/train_*.py lists those of each stage."
WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
    NoneType: "null",
}

Section = tuple[str, type[Config], Component | None]
"""Where a section is, its keys, and what it configures."""


def describe_config(*stage: str) -> str:
    """Describe the sections of an experiment for `--help`, and all components of some of them (`data`, `rdm`)."""
    lines = [HEAD]
    for path, schema, component in _with_inner("", Experiment, None):
        lines += ["", f"{path or 'experiment'}: {_summary(schema)}"]
        lines += [_line(schema, key, component) for key in schema.model_fields]
        if component is not None and any(f"{path}.".startswith(f"{own}.") for own in stage):
            lines += _components(path, component)
    return "\n".join([*lines, "", OTHERS])


def _with_inner(path: str, schema: type[Config], component: Component | None) -> Iterator[Section]:
    """Yield a section, and all that lie in it."""
    yield path, schema, component
    for key in schema.model_fields:
        for inner in _inner(path, key, schema.model_fields[key]):
            yield from _with_inner(*inner)


def _inner(path: str, key: str, field: FieldInfo) -> list[Section]:
    """Return the section that a field holds, or those of which it holds one; none where it is a value."""
    path, component = f"{path}.{key}".lstrip("."), component_of(field)
    if component is not None:
        return [
            (path, TrainableAutoencoderConfig if component.base is AutoencoderConfig else component.base, component)
        ]
    types = [item for item in alternatives(field.annotation) if isinstance(item, type) and issubclass(item, Config)]
    return [(path, item, None) for item in sorted(types, key=lambda item: item.__name__)]


def _components(path: str, component: Component) -> Iterator[str]:
    """Yield the lines of the keys that components add to a section, or give other defaults; shared ones once."""
    base = component.base.model_fields
    owners: dict[str, list[str]] = {}
    sections: dict[str, Section] = {}
    for name in component.registry.names():
        try:
            schema = config_of(component.registry, name)
        except UserError as error:
            yield f"\n{path} of name {name}: {error}"
            continue
        for key, field in schema.model_fields.items():
            inner = _inner(path, key, field)
            if key == "name" or (key in base and (inner or _default(field) == _default(base[key]))):
                continue
            owners.setdefault(_line(schema, key, None), []).append(name)
            sections |= {f"{place} {item.__name__}": (place, item, part) for place, item, part in inner}
    for names in dict.fromkeys(map(tuple, owners.values())):
        about = f" {_summary(config_of(component.registry, names[0]))}" if len(names) == 1 else ""
        yield f"\n{path} of name {', '.join(names)}:{about}"
        yield from (line for line, owner in owners.items() if tuple(owner) == names)
    known = {item for _, item, _ in _with_inner("", Experiment, None)}
    for place, schema, part in (item for section in sections.values() for item in _with_inner(*section)):
        if schema not in known:
            yield f"\n{place}: {_summary(schema)}"
            yield from (_line(schema, key, part) for key in schema.model_fields)


def _summary(schema: type[Config]) -> str:
    return next(iter((schema.__doc__ or "").splitlines()), "")


def _line(schema: type[Config], key: str, component: Component | None) -> str:
    field = schema.model_fields[key]
    meaning = _meaning(schema, key)
    if component is not None and key == "name":
        return f"  {key:19} {meaning} One of: {', '.join(component.registry.names())}."
    if _inner("", key, field):
        return f"  {key:19} {meaning}"
    return f"  {key:19} {meaning} [{_default(field)}{_type(field.annotation, field.metadata)}]"


def _meaning(schema: type[Config], key: str) -> str:
    """Return on one line what a key means; a section that only changes a default leaves that to those it extends."""
    bases = (base for base in schema.__mro__ if issubclass(base, Config))
    fields = (base.model_fields[key] for base in bases if key in base.model_fields)
    return " ".join(next((field.description for field in fields if field.description), "").split())


def _default(field: FieldInfo) -> str:
    """Write a default as a person would in YAML, before the type; nothing where there is none."""
    default = field.default
    if default is PydanticUndefined or isinstance(default, Config):
        return ""
    return f"{default if isinstance(default, str | Path) else json.dumps(default, default=str)}; "


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say what values a field takes."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], [*args[1:], *metadata])
    if origin in (Union, UnionType):
        return " or ".join(_type(arg, () if arg is NoneType else metadata) for arg in args)
    if origin is Literal:
        return ", ".join(str(arg) for arg in args)
    if origin is tuple:
        kinds = [_type(arg) for arg in args if arg is not ...]
        return f"list of {kinds[0]}" if ... in args else f"[{', '.join(kinds)}]"
    if origin is dict:
        return "section"
    return WORDS.get(annotation, "value") + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    found = {
        name: bound
        for item in _flat(metadata)
        for name in ("ge", "gt", "le", "lt")
        if (bound := getattr(item, name, None)) is not None
    }
    if {"ge", "le"} <= found.keys():
        return f" from {found['ge']:g} to {found['le']:g}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " and".join(f" {signs[name]} {bound:g}" for name, bound in found.items())


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    """Yield constraints, those inside of a `Field` too."""
    for item in metadata:
        yield from _flat(item.metadata) if isinstance(item, FieldInfo) else (item,)
