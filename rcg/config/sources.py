"""The `Config` of a component read off its source: `--help` knows its keys without importing what computes with them.

A module's light imports, constants and `Config` classes are executed, without their methods; all else is passed over.
"""

from __future__ import annotations

import ast
import importlib
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rcg.config.base import Config, config_class
from rcg.core.registry import Registry

LIGHT = (
    *("typing", "pydantic", "pathlib", "collections", "functools"),
    *("rcg.config", "rcg.core.errors", "rcg.core.registry"),
)
"""Modules that are imported as they are, with all that lies in them."""


def config_of(registry: Registry[Any], name: str) -> type[Config]:
    """Return a class with the fields and docstrings of a component's `Config`, which validates nothing.

    Where the source alone does not tell, the component is imported, and its `Config` returned.
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
    if isinstance(statement, ast.ImportFrom) and statement.module:
        for alias in statement.names:
            with suppress(LookupError):
                values[alias.asname or alias.name] = _imported(statement.module, alias.name)
    elif isinstance(statement, ast.FunctionDef) and not statement.decorator_list:
        statement.args = _without_annotations(statement.args)
        statement.returns = None
        _run(statement, values, file)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        _run(statement, values, file)
    elif isinstance(statement, ast.ClassDef):
        _define(statement, values, file)


def _define(statement: ast.ClassDef, values: dict[str, Any], file: str) -> None:
    """Define a Config; note the one of the component that is registered."""
    body = statement.body
    names = [item.value for item in body if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "Config"]
    registered = any(ast.unparse(item).endswith(".register") for item in statement.decorator_list)
    bases = [eval(compile(ast.Expression(base), file, "eval"), values) for base in statement.bases] if not names else []
    if any(isinstance(base, type) and issubclass(base, Config) for base in bases):
        statement.body = [item for item in body if not isinstance(item, ast.FunctionDef)] or [ast.Pass()]
        statement.decorator_list = []
        _run(statement, values, file)
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                values[statement.name].model_fields[ast.unparse(field.target)].description = cleandoc(
                    str(text.value.value)
                )
        names = [ast.Name(statement.name)]
    if registered and names:
        values["Config of the component"] = values[ast.unparse(names[0])]


def _imported(module: str, name: str) -> Any:
    if module.startswith(LIGHT):
        return getattr(importlib.import_module(module), name)
    if not module.startswith("rcg."):
        raise LookupError(f"{module} may be heavy")
    spec = find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return SimpleNamespace(**_read(f"{module}.{name}")) if is_package else _read(module)[name]


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return arguments


def _run(statement: ast.stmt, values: dict[str, Any], file: str) -> None:
    exec(compile(ast.Module([statement], []), file, "exec", dont_inherit=True), values)
