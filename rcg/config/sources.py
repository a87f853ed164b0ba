"""The `Config` of a component read off its source: `--help` knows its keys without importing what computes with them.

A module's light imports, constants and `Config` classes are executed, without their methods; all else is passed over.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import sys
from contextlib import suppress
from enum import Enum
from functools import cache
from importlib.util import find_spec
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rcg.config.base import Config, config_class
from rcg.core.registry import Registry

LIGHT = {"pydantic", "rcg.config", "rcg.core.errors", "rcg.core.registry", *sys.stdlib_module_names}
"""Modules, and packages, that are imported as they are."""


def config_of(registry: Registry[Any], name: str) -> type[Config]:
    """Return a class with the fields and docstrings of a component's `Config`, which validates nothing.

    Where the source alone does not tell, the component is imported, and its `Config` returned.

    Raises:
        UserError: it needs a library that is not installed.
    """
    read: type[Config] | None = _read(f"{registry.package}.{name}").get("Config of the component")
    return config_class(registry, name) if read is None else read


@cache
def _read(module: str) -> dict[str, Any]:
    """Execute the light part of a module; return what it defines."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    values: dict[str, Any] = {"__name__": f"{module} (its source)"}
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        # What needs a heavy library fails, and no field of a Config needs it.
        with suppress(Exception):
            _execute(statement, values, spec.origin)
    return values


def _execute(statement: ast.stmt, values: dict[str, Any], file: str) -> None:
    match statement:
        case ast.Import() if all(_is_light(alias.name) for alias in statement.names):
            _run(statement, values, file)
        case ast.ImportFrom(module=str(module), level=0):
            for alias in statement.names:
                with suppress(LookupError):
                    values[alias.asname or alias.name] = _imported(module, alias.name)
        case ast.FunctionDef(decorator_list=[]):
            # Its annotations may name what is not there.
            _run(statement, values, file, __future__.annotations.compiler_flag)
        case ast.Assign() | ast.AnnAssign():
            _run(statement, values, file)
        case ast.ClassDef():
            _define(statement, values, file)


def _define(statement: ast.ClassDef, values: dict[str, Any], file: str) -> None:
    """Define a Config or an enumeration; note the Config of the component that is registered."""
    body = statement.body
    names = [item.value for item in body if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "Config"]
    registered = any(ast.unparse(item).endswith(".register") for item in statement.decorator_list)
    bases = [eval(compile(ast.Expression(base), file, "eval"), values) for base in statement.bases] if not names else []
    if any(isinstance(base, type) and issubclass(base, Config | Enum) for base in bases):
        statement.body = [item for item in body if not isinstance(item, ast.FunctionDef)] or [ast.Pass()]
        statement.decorator_list = []
        _run(statement, values, file)
        # pydantic finds the texts below fields itself, but only where the module was not imported as well.
        fields = getattr(values[statement.name], "model_fields", {})
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(ast.Constant(str(words))) if key in fields:
                    fields[key].description = cleandoc(words)
        names = [ast.Name(statement.name)]
    if registered and names:
        values["Config of the component"] = values[ast.unparse(names[0])]


def _is_light(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:depth]) in LIGHT for depth in range(1, len(parts) + 1))


def _imported(module: str, name: str) -> Any:
    if _is_light(module):
        return getattr(importlib.import_module(module), name)
    if not module.startswith("rcg."):
        raise LookupError(f"{module} may be heavy")
    spec = find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return SimpleNamespace(**_read(f"{module}.{name}")) if is_package else _read(module)[name]


def _run(statement: ast.stmt, values: dict[str, Any], file: str, flags: int = 0) -> None:
    exec(compile(ast.Module([statement], []), file, "exec", flags, dont_inherit=True), values)
