"""One YAML file -> one frozen, typed `Experiment`; an unknown key is refused with its path and the nearest key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, model_validator

from rcg.config import sections
from rcg.config.base import OWN, Component, Config, Side, alternatives, component_of, config_class, roles, takes_text
from rcg.config.parsing import NULLS, Unquoted, parse_yaml, read_yaml, shortened
from rcg.core.console import say
from rcg.core.errors import UserError, nearest_file
from rcg.core.registry import Registry

Normalize = Literal["per_sample", "per_dataset", "none"]
"""Over what representations are normalized."""


class Experiment(Config):
    """One experiment: these images, this encoder, this RDM, this generator."""

    defaults = {"rdm": {"name": "rep_mlp"}}

    run: Path
    """Folder of the results; default: runs/<name of the file>."""
    seed: NonNegativeInt = 0
    """Seed of weights, data order and noise."""
    data: sections.DataSection
    """Images."""
    encoder: sections.EncoderSection
    """Image -> representation."""
    projection: sections.ProjectionConfig | None = None
    """Representation -> fewer features, before it is normalized; null: all of them."""
    normalize: Normalize = "per_sample"
    """Representation -> z: standardized over its own features (RCG), each over the data set (DiffAE), or as it is."""
    clusters: PositiveInt | None = None
    """z -> label, for condition: cluster: how many clusters k-means finds among the training images; null:
    ten for each class (100 without classes), but never more than one for every 50 images."""
    rdm: sections.RDMSection
    """Noise -> z."""
    generator: sections.GeneratorSection | None = None
    """z -> image; an experiment may end with its RDM."""

    @model_validator(mode="after")
    def _share_encoder(self) -> Experiment:
        """Give the experiment's encoder to an autoencoder that needs one and names none."""
        autoencoder = self.generator and self.generator.autoencoder
        if isinstance(autoencoder, sections.RepresentationAutoencoderConfig) and autoencoder.encoder is None:
            autoencoder = autoencoder.model_copy(update={"encoder": self.encoder})
            generator = self.require_generator().model_copy(update={"autoencoder": autoencoder})
            return self.model_copy(update={"generator": generator})
        return self

    def warnings(self) -> Iterator[str]:
        """Yield warnings about valid but probably unintended settings, each with its section."""
        models: dict[str, sections.ModelConfig | None] = {"rdm": self.rdm, "generator": self.generator}
        for section, model in models.items():
            if model is not None:
                yield from (f"{section}.{warning}" for warning in model.warnings())

    def to_yaml(self) -> str:
        """Write the resolved experiment as YAML that `load_experiment` reads again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def require_generator(self) -> sections.GeneratorConfig:
        """Return the generator's section; raises `UserError` where there is none."""
        if self.generator is None:
            raise UserError("the experiment ends with its RDM: add a section generator: {name: dit, ...} to train one")
        return self.generator


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from YAML and apply dotted overrides such as `generator.depth=12`.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is not what the schema asks for.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        inside = [str(file) for file in (*path.glob("*.yaml"), *path.glob("*/config.yaml"))][:5]
        raise UserError(f"{path} is a folder: give a YAML file ({', '.join(inside) or 'it holds none'})")
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"there is no configuration {path}; {nearest_file(path, '.yaml', '.yml')}") from None
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"it holds {shortened(values)}"
        raise UserError(f"{path} must hold sections (data, encoder, rdm, generator), but {found}")
    values.setdefault("run", f"runs/{path.stem}")
    for override in sorted(map(_Override.parse, overrides), key=lambda override: override.rank):
        override.apply(values)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_complaints(error))}") from None


def load_encoder_section(text: str) -> tuple[sections.EncoderConfig, int | None]:
    """Read an encoder section from a YAML file, an experiment's or the section alone, or from YAML itself.

    Returns:
        The section, and the image size of the experiment where there is one.

    Raises:
        UserError: there is no such file, or it is not an encoder section with weights.
    """
    path = Path(os.path.expanduser(text))
    try:
        is_file = path.suffix in (".yaml", ".yml")
        values = read_yaml(path) if is_file else parse_yaml(text, f"the encoder {shortened(text)} is not YAML")
    except FileNotFoundError:
        hint = nearest_file(path, ".yaml", ".yml")
        raise UserError(f"there is no file {path} with an encoder section; {hint}") from None
    values = values if isinstance(values, dict) else {"encoder": values}
    text = text if len(text) < 80 else shortened(text)
    try:
        config = TypeAdapter(sections.EncoderSection).validate_python(values.get("encoder", values))
        data = TypeAdapter(_Images).validate_python(values.get("data") or {})
    except ValidationError as error:
        raise UserError(f"encoder {text}: {'; '.join(_complaints(error))}") from None
    if config.weights is None:
        raise UserError(f"encoder {text} names no weights: say where they are, weights: FILE")
    return config, data.image_size


def parse_saved_config(registry: Registry, kind: str, section: Mapping[str, Any]) -> Any:
    """Validate the section that a checkpoint holds of a part of this kind: the config of the component it names.

    Raises:
        UserError: another version of rcg wrote it, which had other names, keys or values.
    """
    name = section.get("name")
    if not isinstance(name, str):
        raise UserError(f"the {kind}'s checkpoint names no component: config.name is {name!r}")
    try:
        return config_class(registry, name).model_validate(section)
    except ValidationError as error:
        complaints = "; ".join(_complaints(error))
        raise UserError(f"the {kind}'s checkpoint was written by another version of rcg: {complaints}") from None


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield `path: old -> new` for every leaf in which two dumped configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old} -> {new}"


class _Images(BaseModel):
    """What an encoder section has to know of the data section beside it."""

    image_size: Side | None = None


@dataclass(frozen=True)
class _Override:
    """A dotted key and the text that was typed for it."""

    keys: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, override: str) -> _Override:
        """Split `section.key=value`."""
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            raise UserError(f"an override looks like rdm.width=512, not {shortened(override)}")
        return cls(keys, text)

    def __str__(self) -> str:
        return f"{'.'.join(self.keys)}={self.text if len(self.text) < 80 else shortened(self.text)}"

    @property
    def rank(self) -> tuple[int, bool]:
        """Sections come before what lies in them, and the name of a component before its settings."""
        return len(self.keys), self.keys[-1] not in ("name", "preset")

    def apply(self, values: dict[str, Any]) -> None:
        """Set the key; another component drops the settings that belong to the one before."""
        section = values
        place = _Place(Experiment)
        for depth, key in enumerate(self.keys[:-1], 1):
            place, inner = place.inside(key, section.get(key))
            if not isinstance(inner, dict):
                dotted = ".".join(self.keys[:depth])
                raise UserError(f"cannot override {'.'.join(self.keys)}: {dotted} is {shortened(inner)}, not a section")
            section[key] = inner
            section = inner
        key, component = self.keys[-1], place.component
        value = self._value(place)
        named = component.named({key: value}) if component and isinstance(value, str) else {key: value}
        if not place.knows(key) and named == {key: value}:
            self._refuse_misplaced(values)
        # A misspelt name drops nothing: it is about to be refused.
        known = component is not None and named.get("name") in component.registry.names()
        if component is not None and known and place.name not in (None, named["name"]):
            _drop_foreign(section, component, f"{self}: left out {place.name}'s own settings")
        if place.schema is not None and value is not None:
            other = place.schema.exclusive.get(key, "")
            if section.pop(other, None) is not None:
                say(f"{self}: left out {other}, which says the same")
        section.update(named)

    def _value(self, place: _Place) -> Any:
        """Return the text itself where the schema asks for text, else what it says as YAML."""
        annotation = place.annotation(self.keys[-1])
        if not takes_text(annotation):
            return parse_yaml(self.text, f"the value of override {self} is not YAML")
        quoted = re.fullmatch(r"""(["'])(.*)\1""", self.text)
        if quoted and quoted[1] not in quoted[2]:
            return quoted[2]
        is_home = self.text == "~" and Path in alternatives(annotation)
        return None if self.text in NULLS and not is_home else Unquoted(self.text)

    def _refuse_misplaced(self, values: Mapping[str, Any]) -> None:
        """Raise `UserError` for a key that other sections have: `batch_size`, or `rdm.batch_size`."""
        spellings = complete_keys(self.keys, values)
        if spellings:
            shown = " or ".join(str(_Override(tuple(spelling.split(".")), self.text)) for spelling in spellings)
            raise UserError(f"there is no key {'.'.join(self.keys)}; did you mean {shown}?")


@dataclass(frozen=True)
class _Place:
    """A section of an experiment.

    Attributes:
        schema: what its keys are checked against; None: nobody knows the section.
        component: what it configures, if it is a component's.
        name: of this component.
    """

    schema: type[Config] | None
    component: Component | None = None
    name: str | None = None

    def knows(self, key: str) -> bool:
        """Whether the section has such a key."""
        return self.schema is not None and key in self.schema.model_fields

    def annotation(self, key: str) -> Any:
        """Return the type of a key's value."""
        return self.schema.model_fields[key].annotation if self.schema and key in self.schema.model_fields else Any

    def inside(self, key: str, value: Any) -> tuple[_Place, Any]:
        """Return the section at a key, and its values; a name alone becomes a section."""
        value = {} if value is None else value
        if self.schema is None or key not in self.schema.model_fields:
            return _Place(None), value
        field = self.schema.model_fields[key]
        component = component_of(field)
        if component is None:
            types = (item for item in alternatives(field.annotation) if isinstance(item, type))
            return _Place(next((item for item in types if issubclass(item, Config)), None)), value
        value = component.named(value)
        default = self.schema.section_defaults().get(key, {"name": component.registry.default})
        name = value.get("name", default["name"]) if isinstance(value, dict) else None
        schema = component.schema({"name": name}) if name in component.registry.names() else component.base
        return _Place(schema, component, name), value


def complete_keys(keys: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys, at most five, that end as `keys` do and have the others on their way, in this order."""

    def below(place: _Place, section: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key in place.schema.model_fields if place.schema else ():
            yield (*path, key)
            inner, content = place.inside(key, section.get(key) if isinstance(section, dict) else None)
            yield from below(inner, content, (*path, key))

    def fits(path: tuple[str, ...]) -> bool:
        way = iter(path)
        return path[-1] == keys[-1] and all(key in way for key in keys)

    return [".".join(path) for path in below(_Place(Experiment), values, ()) if fits(path)][:5]


def _drop_foreign(section: dict[str, Any], component: Component, message: str) -> None:
    """Keep of a section what all components of its kind share."""
    shared = {key for key in component.base.model_fields if OWN not in roles(component.base, key)}
    foreign = [key for key in section if key not in shared]
    for key in foreign:
        del section[key]
    if foreign:
        say(f"{message} ({', '.join(foreign)})")


EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a section with keys",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "model_type": "a section with keys",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What pydantic misses, in plain words."""
MAX_COMPLAINTS = 5


def _complaints(error: ValidationError) -> Iterator[str]:
    """Yield what is wrong with a configuration, key by key, at most `MAX_COMPLAINTS` of it."""
    errors = error.errors()
    for item in errors[:MAX_COMPLAINTS]:
        path = ".".join(str(part) for part in item["loc"])
        kind, message = item["type"], item["msg"]
        place = f"{path}: " if path else ""
        if kind == "key":
            yield f"{path}.{item['ctx']['key']}: {message}".lstrip(".")
        elif kind in ("name", "section", "value_error"):
            yield f"{place}{message.removeprefix('Value error, ')}"
        elif kind == "missing":
            what = "list is too short" if isinstance(item["loc"][-1], int) else "section or key is required"
            yield f"{place}this {what}"
        elif kind in EXPECTED:
            yield f"{place}expected {EXPECTED[kind]}, got {shortened(item['input'])}"
        else:
            yield f"{place}{message[:1].lower()}{message[1:]}, got {shortened(item['input'])}"
    if len(errors) > MAX_COMPLAINTS:
        yield f"and {len(errors) - MAX_COMPLAINTS} more"
