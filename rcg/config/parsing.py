"""YAML as people write it -> plain values, in bounded time and memory.

All YAML is read here. An unquoted scalar stays the text that was written, an `Unquoted`, until the schema says what it
means: `run: 2024_01_01` is a name, `steps: 1e4` a number, `precision: no` a word. There are no tags and no dates.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rcg.core.errors import UserError

MAX_CHARACTERS = 200_000
MAX_VALUES = 100_000
"""Most values of a document, those of an alias counted each time."""
MAX_DEPTH = 50
NULLS = ("", "~", "null", "Null", "NULL")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_DIGITS = r"[0-9](?:_?[0-9])*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxlong = 2, 4, 4, 80, 40
_short.maxtuple, _short.maxother = 4, 80


class Unquoted(str):
    """A scalar without quotes, as it was written."""

    def resolved(self) -> Any:
        """Return what it is where the schema does not tell: a truth value, a number, or the text."""
        if self.lower() in WORDS:
            return WORDS[self.lower()]
        if _NOT_FINITE.fullmatch(self):
            return float(self.replace(".", "", 1))
        if _INTEGER.fullmatch(self):
            # Python refuses to read longer ones; then no schema wants them either.
            return int(self) if len(self) < 1000 else str(self)
        return float(self) if _FLOAT.fullmatch(self) else str(self)


def shortened(value: Any) -> str:
    """Return the representation of a value, cut to a line or two: it may have been made to fill the memory."""
    return _short.repr(str(value) if isinstance(value, Unquoted) else value)


def read_yaml(path: Path, source: str | None = None) -> Any:
    """Read a file; see `parse_yaml`.

    Raises:
        UserError: it is not YAML, or too large.
        OSError: it cannot be read.
    """
    source = source or f"{path} is not a YAML file"
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise UserError(f"{source}: it holds bytes that are not UTF-8 text") from None
    return parse_yaml(text, source)


def parse_yaml(text: str, complaint: str) -> Any:
    """Parse a document into dicts with text keys, lists, `None`, quoted text and `Unquoted` text.

    Args:
        text: the document.
        complaint: how the error's sentence begins (`toy.yaml is not a YAML file`).

    Raises:
        UserError: it is not YAML, is too large or too deep, repeats a key, or has a tag.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{complaint}: it is longer than {MAX_CHARACTERS} characters")
    try:
        node = _Composer(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise UserError(f"{complaint}: {where}{' '.join((error.problem or str(error.context)).split())}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{complaint}: {' '.join(str(error).split())}") from None


class _Composer(yaml.SafeLoader):
    """Composes nodes, and refuses tags and documents that grow without bound."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"write the value without the tag {event.tag!r}", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(f"more than {MAX_DEPTH} brackets or sections lie in each other", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self.sizes[id(node)] = 1 + sum(self.sizes.get(id(child), 0) for child in _children(node))
        if id(node) not in self.sizes:
            raise _refusal(f"&{event.anchor} holds itself", event)
        if self.sizes[id(node)] > MAX_VALUES:
            raise _refusal(f"it holds more than {MAX_VALUES} values", event)
        return node


def _children(node: Node | None) -> Iterator[Node]:
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair


def _value(node: Node) -> Any:
    if isinstance(node, SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, MappingNode):
        return _mapping(node)
    assert isinstance(node, ScalarNode)
    text = str(node.value)
    if node.style is not None:  # quoted
        return text
    return None if text in NULLS else Unquoted(text)


def _mapping(node: MappingNode) -> dict[str, Any]:
    """Return a mapping whose own keys stand before those that `<<` merges into it."""
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, content in node.value:
        if not isinstance(key, ScalarNode):
            raise _refusal("a key has to be a word", key)
        if key.value == "<<" and key.style is None:
            for part in content.value if isinstance(content, SequenceNode) else [content]:
                if not isinstance(part, MappingNode):
                    raise _refusal("<< merges sections only", key)
                merged = _mapping(part) | merged
        elif key.value in own:
            raise _refusal(f"{shortened(key.value)} is given twice in one section", key)
        else:
            own[key.value] = _value(content)
    return merged | own


def _refusal(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
