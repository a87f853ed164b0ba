"""YAML to frozen values: defaults, overrides, round trips, help."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rcg.config import load_experiment
from rcg.config.base import RENAMED, config_class
from rcg.config.help import describe_config
from rcg.config.sources import config_of
from rcg.core.errors import UserError
from rcg.core.registry import AUTOENCODERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS, Registry
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from tests.toy import ROOT, tool, write

REGISTRIES = (AUTOENCODERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS)
DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid_and_survives_a_round_trip(path, tmp_path):
    experiment = load_experiment(path)
    assert experiment.run.parent == Path("runs")
    assert not list(experiment.warnings())
    assert max(map(len, path.read_text().splitlines())) <= 120
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == experiment


def test_sizes_and_recipe_of_the_paper_are_the_defaults(tmp_path):
    (tmp_path / "paper.yaml").write_text("data: {name: imagenet}\nencoder: {name: moco_v3}\ngenerator: {name: dit}")
    experiment = load_experiment(tmp_path / "paper.yaml")
    rdm, generator = experiment.rdm, experiment.generator
    assert (rdm.width, rdm.depth) == (1536, 12)
    assert (rdm.train.lr, rdm.train.batch_size, rdm.train.weight_decay) == (5.12e-4, 512, 0.01)
    assert rdm.train.grad_clip is None
    assert (generator.condition, generator.condition_dropout) == ("representation", 0.1)
    assert generator.process.predict == "eps"
    assert experiment.normalize == "per_sample"


def test_a_part_of_a_section_leaves_the_other_defaults(tmp_path):
    experiment = load_experiment(write(tmp_path), ["rdm.train.steps=7", "rdm.process.predict=x0"])
    assert (experiment.rdm.train.steps, experiment.rdm.train.lr) == (7, 5.12e-4)
    assert (experiment.rdm.process.predict, experiment.rdm.process.schedule) == ("x0", "cosine")
    no_sampler = ROOT / "configs" / "cifar10.yaml"
    assert load_experiment(no_sampler, ["rdm.sampler.steps=60"]).rdm.sampler.name == "unipc"
    assert load_experiment(no_sampler, ["rdm.sampler.name=ddpm"]).rdm.sampler.steps == 50


def test_another_component_drops_the_settings_of_the_one_before(capsys, tmp_path):
    path = tmp_path / "digits.yaml"
    path.write_text(DIGITS.read_text().replace("\nrdm:\n", "\nrdm:\n  sampler: {name: ddim, steps: 100, eta: 1}\n"))
    plain = load_experiment(path)
    assert plain.rdm.sampler.eta == 1
    sampled = load_experiment(path, ["rdm.sampler.name=ddpm"])
    assert sampled.rdm.sampler.name == "ddpm"
    assert not hasattr(sampled.rdm.sampler, "eta")
    assert sampled.rdm.sampler.steps == 100
    assert capsys.readouterr().out == "rdm.sampler.name=ddpm: left out ddim's own settings (eta)\n"
    flow = load_experiment(DIGITS, ["generator.process.name=flow"])
    assert flow.generator.process.model_dump() == {
        "name": "flow",
        "predict": "velocity",
        "measure": None,
        "loss": "l2",
        "time": "logit_normal",
        "time_mean": 0.0,
        "time_std": 1.0,
        "shift": 1.0,
    }
    line = "generator.process.name=flow: left out gaussian's own settings (schedule, predict)\n"
    assert capsys.readouterr().out == line


def test_another_generator_drops_what_belongs_to_the_one_before(capsys):
    adm = load_experiment(DIGITS, ["generator.name=adm"]).generator
    assert adm.condition_noise == 0.5
    assert (adm.train.steps, adm.train.batch_size) == (1200, 128)
    assert (adm.guidance.scale, adm.process.name, adm.sampler.steps) == (1.0, "gaussian", 50)
    dropped = "width, depth, heads, patch, process, sampler, guidance"
    assert capsys.readouterr().out == f"generator.name=adm: left out dit's own settings ({dropped})\n"


def test_a_misspelt_name_drops_nothing(capsys):
    with pytest.raises(UserError, match="no generator is called 'dti'; did you mean 'dit'") as refusal:
        load_experiment(DIGITS, ["generator.name=dti"])
    assert "unknown key" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_the_name_that_is_there_already_drops_nothing(capsys):
    assert load_experiment(DIGITS, ["generator.sampler.name=ddim"]) == load_experiment(DIGITS)
    assert load_experiment(DIGITS, ["rdm.name=rep_mlp"]) == load_experiment(DIGITS)
    assert capsys.readouterr().out == ""


OLD = {
    "normalise=per_sample": "normalise: unknown key; it is called 'normalize' now",
    "rdm.train.ema=0.9": "rdm.train.ema: unknown key; it is called 'ema_decay' now",
    "rdm.train.accumulate=2": "rdm.train.accumulate: unknown key; it is called 'grad_accum_steps' now",
    "rdm.train.clip=1": "rdm.train.clip: unknown key; it is called 'grad_clip' now",
    "generator.checkpoint=true": "generator.checkpoint: unknown key; it is called 'grad_checkpointing' now",
    "data.workers=2": "data.workers: unknown key; it is called 'num_workers' now",
    "generator={name: dit, autoencoder: {name: kl, train: {start: a.pt}}}": (
        "generator.autoencoder.train.start: unknown key; it is called 'init_from' now"
    ),
    "generator={name: dit, autoencoder: {name: vq, quantiser: {codes: 4}}}": (
        "generator.autoencoder.quantiser: unknown key; it is called 'quantizer' now"
    ),
    "generator={name: mage, sampling_room: 0.5}": (
        "generator.sampling_room: unknown key; it is called 'min_encoder_tokens' now"
    ),
    "generator={name: mage, output_trains_words: false}": (
        "generator.output_trains_words: unknown key; it is called 'tie_embedding_grad' now"
    ),
}


@pytest.mark.parametrize(("override", "sentence"), OLD.items())
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(override, sentence, tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError) as refused:
        load_experiment(path, [override])
    assert str(refused.value) == f"{path}: {sentence}"


def test_every_renamed_key_is_tested():
    assert {re.search(r"called '(\w+)'", sentence)[1] for sentence in OLD.values()} == set(RENAMED.values())


def test_a_new_name_is_only_offered_where_it_exists(tmp_path):
    with pytest.raises(UserError, match=r"rdm\.workers: unknown key; known: "):
        load_experiment(write(tmp_path), ["rdm.workers=1"])


@pytest.mark.parametrize(
    ("process", "times"),
    [
        ({"schedule": "cosine"}, 20291),
        ({"schedule": "linear"}, 157.4),
        ({"schedule": "sqrt_linear"}, 83.8),
        ({"schedule": "cosine", "predict": "v"}, 1),
    ],
)
def test_an_error_of_the_noise_is_sigma_over_alpha_times_as_large_in_the_data(process, times):
    gaussian = Gaussian(GaussianConfig(**process))
    noisiest = gaussian.levels(1, "trailing")[0]
    x, output = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    error = gaussian.solve(output, x, noisiest.alpha, noisiest.sigma).x0.abs().item()
    assert GaussianConfig(**process).amplification == pytest.approx(error) == pytest.approx(times, rel=1e-3)


def test_predicting_noise_where_nothing_but_noise_is_left_gives_a_warning(tmp_path):
    (warning,) = load_experiment(write(tmp_path), ["rdm.process.predict=eps"]).warnings()
    assert warning.startswith("rdm.process: at the noisiest level an error of the predicted noise is 2.03e+04 times")
    assert "ddim with 4 steps" in warning
    assert "predict: v or x0" in warning
    eps = ["generator.process={predict: eps, schedule: cosine}"]
    warnings = load_experiment(write(tmp_path), eps).warnings()
    assert [text.split(":")[0] for text in warnings] == ["generator.process"]
    clipped = [*eps, "generator.sampler.clip=true"]  # as the published ADM at 64 px
    assert not list(load_experiment(write(tmp_path), clipped).warnings())
    assert "warning: rdm.process" in tool("train_rdm", write(tmp_path), "rdm.process.predict=eps").stderr


def test_help_describes_each_key_on_one_line_with_its_default():
    lines = describe_config().splitlines()
    keys = [line for line in lines if line.startswith("  ")]
    assert len(keys) > 100
    assert all(re.fullmatch(r"  [a-z_]+ +[^ \[].*[.\]]", line) for line in keys)
    assert all(line[:1].isalpha() and line.endswith((".", ":")) for line in lines if line and line not in keys)
    text = next(line for line in keys if line.split()[0] == "decay_all")
    assert text.endswith("too, as the published RDM does. [false; true or false]")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_the_source_of_a_component_tells_its_keys_without_importing_it(registry):
    for name in registry.names():
        real, read = config_class(registry, name), config_of(registry, name)
        assert read is not real
        assert list(read.model_fields) == list(real.model_fields)
        for key, field in real.model_fields.items():
            other = read.model_fields[key]
            assert other.description == field.description, (name, key)
            assert list(map(type, other.metadata)) == list(map(type, field.metadata)), (name, key)
            assert repr(other.annotation).split(".")[-1] == repr(field.annotation).split(".")[-1], (name, key)
            assert repr(other.default) == repr(field.default), (name, key)


PLUGIN = """
import math
import os
from enum import Enum
from pathlib import Path

import nosuchlibrary
from rcg.config import EncoderConfig
from rcg.core.registry import ENCODERS


class Kind(Enum):
    A = "a"


class PlainConfig(EncoderConfig):
    name: str = "plain"
    kind: Kind = Kind.A
    side: float = math.sqrt(4)
    places: tuple[Path, ...] = (Path("a"),)
    home: str = os.environ.get("NOSUCHVARIABLE", "none")


@ENCODERS.register
class Plain(nosuchlibrary.Base):
    Config = PlainConfig
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PLUGIN, ["[2.0; number]", "places", "kind"]),
        (
            PLUGIN.replace("PlainConfig(EncoderConfig)", "PlainConfig(nosuchlibrary.X)"),
            ["needs nosuchlibrary, which is"],
        ),
    ],
)
def test_a_plug_in_of_ones_own_does_not_break_the_help(source, words, tmp_path, monkeypatch):
    folder = tmp_path / f"plugins_of_{len(source)}"  # what is read is kept
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "plain.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ENCODERS, "package", folder.name)
    monkeypatch.setattr(ENCODERS, "_classes", {})
    text = describe_config("encoder")
    assert all(word in text for word in words)


def test_a_component_whose_source_does_not_tell_is_imported(toy_autoencoder):
    assert config_of(AUTOENCODERS, "toy_tokenizer") is toy_autoencoder.Config
    assert "toy_tokenizer" in describe_config("generator.autoencoder")


@pytest.mark.parametrize(
    ("tool_name", "sections"),
    [
        ("train_encoder", {"data": DATASETS, "encoder": ENCODERS}),
        ("train_rdm", {"data": DATASETS, "rdm": NETWORKS, "rdm.process": PROCESSES, "rdm.sampler": SAMPLERS}),
        ("train_autoencoder", {"generator.autoencoder": AUTOENCODERS}),
        ("train_pixel", {"generator": GENERATORS, "generator.process": PROCESSES, "generator.sampler": SAMPLERS}),
    ],
)
def test_the_help_of_a_stage_lists_every_key_of_its_components(tool_name, sections):
    text = tool(tool_name, "--help").stdout
    for section, registry in sections.items():
        blocks = re.split(r"\n\n", text)
        for name in registry.names():
            heads = (f"{section}: ", f"{section} of name ")
            mine = [b for b in blocks if b.startswith(heads[0]) or (b.startswith(heads[1]) and name in b.split(":")[0])]
            listed = {line.split()[0] for block in mine for line in block.splitlines() if line.startswith("  ")}
            assert set(config_class(registry, name).model_fields) <= listed, (section, name)


def test_values_are_frozen(tmp_path):
    with pytest.raises(ValidationError, match="frozen"):
        load_experiment(write(tmp_path)).seed = 3


def test_the_run_is_named_after_its_file(tmp_path):
    path = write(tmp_path)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("run:")))
    assert load_experiment(path).run == Path("runs/toy")


def test_import_strings_and_python_tags_are_not_understood(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("data: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not a YAML file"):
        load_experiment(path)
    with pytest.raises(UserError, match="no encoder is called"):
        load_experiment(write(tmp_path), ["encoder.name=os.path"])


def test_a_registry_refuses_a_second_class_of_one_name():
    registry = Registry("thing", "rcg.diffusion.samplers")
    registry.register(type("A", (), {"__module__": "somewhere.thing"}))
    with pytest.raises(ValueError, match="'thing' is registered twice"):
        registry.register(type("B", (), {"__module__": "elsewhere.thing"}))


def test_looking_up_a_name_imports_that_file_only(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").write_text(
        "from rcg.core.registry import Registry\nTHINGS = Registry('thing', 'shelf')"
    )
    for name in ("book", "vase"):
        (tmp_path / "shelf" / f"{name}.py").write_text(
            "from shelf import THINGS\n@THINGS.register\nclass Thing:\n    pass"
        )
    monkeypatch.syspath_prepend(tmp_path)
    things = importlib.import_module("shelf").THINGS
    assert things.names() == ["book", "vase"]
    assert things.get("book").__module__ == "shelf.book"
    assert {name for name in sys.modules if name.startswith("shelf.")} == {"shelf.book"}
