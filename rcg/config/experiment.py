"""One YAML file -> one frozen, typed `Experiment`; an unknown key is refused with its path and the nearest key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from rcg.config import sections
from rcg.config.base import OWN, Component, Config, component_of, config_class, roles
from rcg.core.console import say
from rcg.core.errors import UserError, nearest
from rcg.core.registry import Registry


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
    normalize: Literal["per_sample", "per_dataset", "none"] = "per_sample"
    """Representation -> z: standardized over its own features (RCG), each over the data set (DiffAE), or as it is."""
    clusters: PositiveInt | None = None
    """z -> label, for generator.condition: cluster: how many clusters k-means finds among the training images; null:
    ten for each class (100 without classes), but never more than one for every 50 images."""
    rdm: sections.RDMSection
    """Noise -> z."""
    generator: sections.GeneratorSection | None = None
    """z -> image; an experiment may end with its RDM."""

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
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        files = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"there is no configuration {path}; {nearest(str(path), files)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (data, encoder, rdm, generator), not {type(values).__name__}")
    values.setdefault("run", f"runs/{path.stem}")
    for override in overrides:
        _override(values, override)
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
    path = Path(text)
    if path.suffix == ".yaml" and not path.is_file():
        raise UserError(f"there is no file {path} with an encoder section")
    try:
        values = yaml.safe_load(path.read_text() if path.suffix == ".yaml" else text)
    except yaml.YAMLError as error:
        raise UserError(f"{text} is not YAML: {' '.join(str(error).split())}") from None
    values = values if isinstance(values, dict) else {"encoder": values}
    try:
        config = TypeAdapter(sections.EncoderSection).validate_python(values.get("encoder", values))
    except ValidationError as error:
        raise UserError(f"encoder {text}: {'; '.join(_complaints(error))}") from None
    if config.weights is None:
        raise UserError(f"encoder {text} names no weights: say where they are, weights: FILE")
    return config, values.get("data", {}).get("image_size")


def parse_saved_config(registry: Registry, kind: str, section: Mapping[str, Any]) -> Any:
    """Validate the section that a checkpoint holds of a part of this kind: the config of the component it names.

    Raises:
        UserError: another version of rcg wrote it, which had other names, keys or values.
    """
    try:
        return config_class(registry, section["name"]).model_validate(section)
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


def _override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key; a new `name` drops the settings that belong to the component named before."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"an override looks like rdm.width=512, not {override!r}")
    section: Any = values
    for depth, key in enumerate(keys[:-1], 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"cannot override {dotted}: {'.'.join(keys[:depth])} is {section!r}, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"the value of override {override!r} is not YAML") from None
    if keys[-1] == "name":
        component, before = _component_at(values, keys[:-1])
        # A misspelt name drops nothing: it is about to be refused.
        if component is not None and before not in (None, value) and value in component.registry.names():
            _drop_foreign(section, component, f"{override}: left out {before}'s own settings")
    section[keys[-1]] = value


def _component_at(values: Mapping[str, Any], keys: Sequence[str]) -> tuple[Component | None, str | None]:
    """Return what the section at dotted `keys` configures, and the name that it has, or has by default."""
    schema: Any = Experiment
    component, name = None, None
    for key in keys:
        field = schema.model_fields.get(key)
        if field is None:
            return None, None
        values, component = values.get(key, {}), component_of(field)
        if component is None:
            schema, name = field.annotation, None
        else:
            default = schema.section_defaults().get(key, {"name": component.registry.default})
            name = values.get("name", default["name"])
            schema = component.schema({"name": name}) if name in component.registry.names() else component.base
        if not (isinstance(schema, type) and issubclass(schema, Config)):
            return None, None
    return component, name


def _drop_foreign(section: dict[str, Any], component: Component, message: str) -> None:
    """Keep of a section what all components of its kind share."""
    shared = {key for key in component.base.model_fields if OWN not in roles(component.base, key)}
    foreign = [key for key in section if key not in shared]
    for key in foreign:
        del section[key]
    if foreign:
        say(f"{message} ({', '.join(foreign)})")


def _complaints(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"]
        if item["type"] == "unknown_key":
            yield f"{path}.{item['ctx']['key']}: {message}".lstrip(".")
        elif item["type"] in ("name", "section", "value_error"):
            yield f"{path}: {message.removeprefix('Value error, ')}"
        elif item["type"] == "missing":
            yield f"{path}: this section or key is required"
        else:
            yield f"{path}: {message[:1].lower()}{message[1:]}, got {item['input']!r}"
