"""What people write as values: names that look like numbers, words, hostile YAML, keys in the wrong place."""

import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from rcg.config import EncoderConfig, load_encoder_section, load_experiment
from rcg.config.base import config_class
from rcg.core.errors import UserError, nearest_file
from rcg.core.registry import AUTOENCODERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS
from tests.toy import write

FOLDER = {"name": "image_folder", "root": "photos", "image_size": 16}
NAMES = [
    *("my photos #2", "2024_01_01", "2024-05-01", "2024-99-99", "007", "12:30", "no", "yes", "1e4", "0x1F", ".inf"),
    *("@lib", "%TEMP%", "a: b", "[x] y", "{a}", "*star", "&anchor", "!bang", "- dash", "? q", "`tick`", "a, b", "x=y"),
    *("'half", "trailing ", "true", "[", "{", "\N{SNOWMAN}", "#", "5000" * 2000),
]


@pytest.fixture
def small(tmp_path):
    """A file with the least that an experiment needs."""
    path = tmp_path / "small.yaml"
    path.write_text("data: {name: image_folder, root: photos}\nencoder: {name: moco_v3}\n")
    return path


def section(experiment, dotted):
    for key in dotted.split("."):
        experiment = getattr(experiment, key)
    return experiment


@pytest.mark.parametrize("key", ["run", "data.root", "encoder.weights", "generator.autoencoder.train.vgg"])
def test_an_override_of_a_path_or_a_text_is_taken_as_it_is(key, small):
    small.write_text(small.read_text() + "generator: {name: mage, autoencoder: vqgan}\n")
    for name in NAMES:
        assert str(section(load_experiment(small, [f"{key}={name}"]), key)) == name


@pytest.mark.parametrize("name", ["007", "2024_01_01", "2024-05-01", "2024-99-99", "12:30", "no", "1e4", "5" * 5000])
def test_a_path_or_a_text_in_a_file_is_taken_as_it_is(name, tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text(
        f"run: {name}\ndata: {{name: image_folder, root: {name}}}\nencoder: {{name: moco_v3, weights: {name}}}"
    )
    experiment = load_experiment(path)
    assert (str(experiment.run), str(experiment.data.root), experiment.encoder.weights) == (name, name, name)


def test_an_override_in_quotes_means_what_is_quoted(tmp_path):
    assert load_experiment(write(tmp_path), ["run='my run'"]).run == Path("my run")
    assert load_experiment(write(tmp_path), ['run="a" or "b"']).run == Path('"a" or "b"')


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    experiment = load_experiment(
        write(tmp_path, data=FOLDER), ["run=~/runs/a", "data.root=~", "encoder.weights=~/w.pt"]
    )
    assert experiment.run == Path("/home/me/runs/a")
    assert experiment.data.root == Path("/home/me")
    assert experiment.encoder.weights == "/home/me/w.pt"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rdm.train.precision", "no", "no"),
        ("rdm.train.ema_decay", "none", None),
        ("rdm.train.ema_decay", "null", None),
        ("rdm.train.grad_clip", "None", None),
        ("rdm.train.patience", "none", None),
        ("encoder.train.augment.crop", "none", None),
        ("projection", "none", None),
        ("encoder.weights", "none", "none"),
        ("encoder.weights", "null", None),
        ("rdm.train.steps", "1e4", 10_000),
        ("rdm.train.steps", "10_000", 10_000),
        ("rdm.train.steps", "1.5e3", 1500),
        ("rdm.train.lr", "1e-3", 1e-3),
        ("rdm.train.lr", "1", 1.0),
        ("rdm.train.betas", "[0.5, .9]", (0.5, 0.9)),
        ("data.flip", "yes", True),
        ("data.flip", "off", False),
        ("data.limit", "none", None),
        ("rdm.condition", "none", "none"),
    ],
)
def test_a_value_means_what_its_key_asks_for(key, text, value, tmp_path):
    path = write(tmp_path)
    assert section(load_experiment(path, [f"{key}={text}"]), key) == value
    *sections, last = key.split(".")
    written = "".join(f"{part}: {{" for part in sections) + f"{last}: {text}" + "}" * len(sections)
    path.write_text("data: {name: digits}\nencoder: {name: moco_v3}\n" + written)
    if key.split(".")[0] not in ("data", "encoder"):
        assert section(load_experiment(path), key) == value


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rdm.train.steps=yes", "rdm.train.steps: expected a number, got true"),
        ("seed=no", "seed: expected a number, got false"),
        ("rdm.train.betas=[yes, 0.9]", "rdm.train.betas: expected a number, got true"),
        ("rdm.train.steps=1.5", "rdm.train.steps: expected a whole number, got"),
        ("rdm.train.steps=2001-99-99", "rdm.train.steps: expected a whole number, got"),
        ("seed=" + "1" * 5000, "seed: expected a whole number, got"),
        ("seed=9223372036854775808", "seed: expected a number below 2^63"),
        ("rdm.train.lr=.inf", "rdm.train.lr: expected a finite number, got inf"),
        ("rdm.train.lr=.nan", "rdm.train.lr: expected a finite number, got nan"),
        ("rdm.train.lr=1e999", "rdm.train.lr: expected a finite number, got"),
        ("rdm.guidance.scale=-.inf", "rdm.guidance.scale: expected a finite number, got"),
        ("run=", "run: expected a path, got None"),
        ("run=a\0b", "run: expected text"),
        ("rdm.train.betas=0.5", "rdm.train.betas: expected a list, got 0.5"),
        ("rdm.train.betas=[0.5]", "rdm.train.betas.1: this list is too short"),
        ("rdm.train=5", "rdm.train: expected a section with keys, got '5'"),
        ("data.flip=maybe", "data.flip: expected true or false, got 'maybe'"),
        ("rdm.train.lr=fast", "rdm.train.lr: expected a number, got 'fast'"),
        ("rdm={width: a, depth: b, train: {lr: c, steps: d, warmup: e, batch_size: f}}", "; and 1 more"),
        ("rdm.width=[1, 2", "the value of override rdm.width=[1, 2 is not YAML"),
        ("encoder.name=[moco_v3]", "no encoder is called '[moco_v3]'"),
    ],
)
def test_a_value_of_another_kind_is_refused(override, sentence, small):
    with pytest.raises(UserError) as refused:
        load_experiment(small, [override])
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 600


REGISTRIES = (AUTOENCODERS, DATASETS, ENCODERS, GENERATORS, NETWORKS, PROCESSES, SAMPLERS)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_no_component_takes_a_number_that_is_not_finite_or_a_truth_value_for_a_number(registry):
    for name in registry.names():
        schema = config_class(registry, name)
        for key, field in schema.model_fields.items():
            if type(field.default) in (int, float):
                for value in (float("nan"), float("inf"), True):
                    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's error is one
                        schema.model_validate({"name": name, key: value})


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
HOSTILE = {
    "!!int abc": "the tag",
    "!!python/object/apply:os.system ['true']": "the tag",
    "!!python/name:os.system ''": "the tag",
    "!!binary aGk=": "the tag",
    "!local {a: 1}": "the tag",
    "[" * 10_000: "lie in each other",
    "{a: " * 3000 + "}" * 3000: "lie in each other",
    "&a [*a]": "&a holds itself",
    "*nothing": "found undefined alias",
    "{x: 1, x: 2}": "line 1: 'x' is given twice in one section",
    "{? [a] : b}": "a key has to be a word",
    "{<<: 3}": "<< merges sections only",
    "a: b: c": "mapping values are not allowed here",
    "\x00": "special characters are not allowed",
    "[" + "1, " * 100_000 + "]": "longer than",
    "{" + BOMB.replace("\n", ", ") + "}": "values",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("place", ["file", "inside a file", "override", "encoder"])
def test_hostile_yaml_is_refused_in_one_short_sentence_fast_and_in_little_memory(text, place, small):
    written = {"file": text, "inside a file": f"{small.read_text()}\nprojection: {text}\n"}
    small.write_text(written.get(place, small.read_text()))
    overrides = [f"rdm.width={text}"] if place == "override" else []
    if "&a0" in text:  # it makes everything slow
        tracemalloc.start()
    start = time.process_time()
    with pytest.raises(UserError) as refused:
        load_encoder_section(text) if place == "encoder" else load_experiment(small, overrides)
    assert time.process_time() - start < 5
    if "&a0" in text:
        assert tracemalloc.get_traced_memory()[1] < 100e6
        tracemalloc.stop()
    sentence = str(refused.value)
    assert HOSTILE[text] in sentence or place == "inside a file"
    assert "not YAML" in sentence or "not a YAML file" in sentence
    assert len(sentence) < 600
    assert "\n" not in sentence


def test_a_value_that_is_huge_is_not_printed(tmp_path):
    bomb = BOMB.replace("\n", ", ").split(", a4:")[0]
    with pytest.raises(UserError) as refused:
        load_experiment(write(tmp_path), [f"rdm.width={{{bomb}}}"])
    assert len(str(refused.value)) < 600
    with pytest.raises(UserError) as refused:
        load_experiment(write(tmp_path), ["rdm.name=" + "x" * 100_000])
    assert len(str(refused.value)) < 600


def test_a_section_that_is_given_twice_is_named_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("data: {name: digits}\nencoder: {name: moco_v3}\nrdm:\n  width: 4\nrdm:\n  depth: 2\n")
    with pytest.raises(UserError, match=r"twice.yaml is not a YAML file: line 5: 'rdm' is given twice in one section"):
        load_experiment(path)


def test_anchors_and_merges_work(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(
        "data: {name: digits}\nencoder: {name: moco_v3}\n"
        "rdm: {train: &train {steps: 3, batch_size: 7}}\n"
        "generator: {name: dit, train: {<<: *train, steps: 5}}\n"
    )
    train = load_experiment(path).generator.train
    assert (train.steps, train.batch_size) == (5, 7)


def test_a_name_may_follow_the_settings_of_its_component(tmp_path):
    given = ["encoder.model=resnet10t", "encoder.weights=none", "encoder.name=timm_model"]
    assert load_experiment(write(tmp_path), given) == load_experiment(write(tmp_path), given[::-1])


def test_a_section_that_is_a_name_can_be_overridden(tmp_path):
    path = write(tmp_path, encoder="moco_v3")
    assert load_experiment(path, ["encoder.depth=2"]).encoder.depth == 2


PRESET = "dinov2_vits14"


@pytest.mark.parametrize(
    "override",
    [
        f"encoder={PRESET}",
        f"encoder={{preset: {PRESET}}}",
        f"encoder={{name: {PRESET}}}",
        f"encoder.name={PRESET}",
        f"encoder.preset={PRESET}",
        f"encoder={{model: {PRESET}}}",
        f"encoder={{name: timm_model, model: {PRESET}}}",
    ],
)
def test_a_preset_is_understood_wherever_it_is_typed(override, tmp_path):
    right = load_experiment(write(tmp_path), [f"encoder={{name: timm_model, preset: {PRESET}}}"]).encoder
    assert load_experiment(write(tmp_path), [override]).encoder.model_copy(update={"train": right.train}) == right


@pytest.mark.parametrize("text", [PRESET, f"{{preset: {PRESET}}}", f"{{name: {PRESET}}}", f"encoder: {PRESET}"])
def test_a_preset_is_an_encoder_of_an_evaluation(text):
    config, _ = load_encoder_section(text)
    assert isinstance(config, EncoderConfig)
    assert (config.name, config.model) == ("timm_model", "vit_small_patch14_dinov2.lvd142m")


@pytest.mark.parametrize("key", ["arch", "weights", "feature"])
def test_a_preset_under_another_key_is_answered_with_its_own(key, tmp_path):
    with pytest.raises(
        UserError, match=f"encoder.{key}: {PRESET} is a preset of timm_model: write {{preset: {PRESET}}}"
    ):
        load_experiment(write(tmp_path), [f"encoder.{key}={PRESET}"])


@pytest.mark.parametrize("text", ["nope", "{}", "5", "[1, 2]", ""])
def test_what_is_no_encoder_is_one_sentence(text):
    with pytest.raises(UserError, match=r"^encoder [^:]*: \w") as refused:
        load_encoder_section(text)
    assert len(str(refused.value)) < 300


def test_a_misspelt_preset_is_answered_with_the_right_one(tmp_path):
    with pytest.raises(UserError, match="did you mean 'dinov2_vits14'"):
        load_experiment(write(tmp_path), ["encoder.name=dinov2_vits41"])


@pytest.mark.parametrize(
    ("override", "spelling"),
    [
        ("batch_size=4", "rdm.train.batch_size=4"),
        ("rdm.batch_size=4", "rdm.train.batch_size=4"),
        ("train.lr=4", "generator.train.lr=4"),
        ("generator.eta=1", "generator.sampler.eta=1"),
        ("root=x", "data.root=x"),
        ("image_size=4", "data.image_size=4"),
    ],
)
def test_a_key_in_the_wrong_place_is_answered_with_the_right_spelling(override, spelling, tmp_path):
    with pytest.raises(UserError, match="did you mean") as refused:
        load_experiment(write(tmp_path, data=FOLDER), [override])
    assert spelling in str(refused.value)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("rdm.sampler.name=ddpm", lambda e: e.rdm.sampler.name == "ddpm"),
        ("generator.sampler.name=unipc", lambda e: e.generator.sampler.name == "unipc"),
        ("generator.process.name=flow", lambda e: e.generator.process.name == "flow"),
        ("rdm.name=skip_mlp", lambda e: e.rdm.name == "skip_mlp"),
        ("data.name=mnist", lambda e: e.data.name == "mnist"),
        ("encoder.name=timm_model", None),
        ("generator.autoencoder.name=kl", lambda e: e.generator.autoencoder.name == "kl"),
        ("generator.autoencoder={name: vqgan}", lambda e: e.generator.autoencoder.name == "vqgan"),
    ],
)
def test_swapping_a_part_is_changing_one_name(override, changed, tmp_path):
    full = {
        "data": FOLDER,
        "rdm": {
            "width": 16,
            "long_skips": True,
            "name": "skip_mlp",
            "process": {"name": "gaussian", "schedule": "cosine", "predict": "v"},
            "sampler": {"name": "ddim", "eta": 1, "steps": 5},
        },
        "generator": {
            "name": "dit",
            "patch": 4,
            "process": {"name": "gaussian", "schedule": "linear", "variance": "learned_range"},
            "sampler": {"name": "ddim", "eta": 1, "steps": 5},
            "autoencoder": {"name": "vqgan", "quantizer": {"codes": 16}},
        },
    }
    del full["rdm"]["long_skips"]
    path = tmp_path / "full.yaml"
    path.write_text(yaml.safe_dump(full | {"encoder": {"name": "moco_v3", "arch": "resnet18", "width": 4}}))
    extra = ["encoder.model=resnet10t"] if changed is None else []
    experiment = load_experiment(path, [override, *extra])
    assert changed is None or changed(experiment)


def test_a_hint_names_at_most_five_visible_files_of_the_right_kind(tmp_path):
    for i in range(9):
        (tmp_path / f"toy{i}.yaml").touch()
        (tmp_path / f"toy{i}.txt").touch()
        (tmp_path / f"toy{i}").mkdir()
    (tmp_path / ".toy").mkdir()
    (tmp_path / ".toy.yaml").touch()
    with pytest.raises(UserError) as refused:
        load_experiment(tmp_path / "toy.yaml")
    hint = str(refused.value)
    assert "did you mean" in hint
    assert hint.split("known: ")[1].count(".yaml") == 5
    assert ".txt" not in hint
    assert "/.toy" not in hint
    folders = nearest_file(tmp_path / "toi")
    assert folders.split("known: ")[1].count("toy") == 5
    assert ".yaml" not in folders
    assert "/.toy" not in folders


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_no_size_of_a_component_can_fill_the_memory(registry):
    sizes = ("width", "depth", "decoder_depth", "blocks", "channels", "heads", "patch", "image_size", "input_size")
    for name in registry.names():
        schema = config_class(registry, name)
        for key in {*sizes, "transformer_depth", "steps", "projector_hidden", "codes"} & schema.model_fields.keys():
            with pytest.raises(ValueError, match=r"less than or equal|multiple of"):
                schema.model_validate({"name": name, key: 10**12})


@pytest.mark.parametrize("key", ["rdm.depth", "generator.train.batch_size", "rdm.sampler.steps", "rdm.process.steps"])
def test_a_huge_size_is_refused_by_its_key(key, tmp_path):
    with pytest.raises(UserError, match=f"{key}: input should be less than or equal to"):
        load_experiment(write(tmp_path), [f"{key}=1e12"])
