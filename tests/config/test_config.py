"""YAML to frozen values: defaults, overrides, round trips."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rcg import config
from rcg.core.errors import UserError
from rcg.core.registry import Registry
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig
from tests.toy import ROOT, tool, write


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid_and_survives_a_round_trip(path, tmp_path):
    experiment = config.load(path)
    assert experiment.run.parent == Path("runs")
    assert not list(experiment.doubts())
    assert max(map(len, path.read_text().splitlines())) <= 120
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert config.load(tmp_path / "again.yaml") == experiment


def test_sizes_and_recipe_of_the_paper_are_the_defaults(tmp_path):
    (tmp_path / "paper.yaml").write_text("data: {name: imagenet}\nencoder: {name: moco_v3}\ngenerator: {name: dit}")
    experiment = config.load(tmp_path / "paper.yaml")
    rdm = experiment.rdm
    assert (rdm.width, rdm.depth) == (1536, 12)
    assert (rdm.train.lr, rdm.train.batch_size, rdm.train.weight_decay, rdm.train.grad_clip) == (
        5.12e-4,
        512,
        0.01,
        None,
    )
    generator = experiment.generator
    assert (generator.condition, generator.condition_dropout, generator.process.predict) == (
        "representation",
        0.1,
        "eps",
    )
    assert experiment.normalize == "per_sample"


def test_a_part_of_a_section_keeps_the_other_defaults(tmp_path):
    experiment = config.load(write(tmp_path), ["rdm.train.steps=7", "rdm.process.predict=x0"])
    assert (experiment.rdm.train.steps, experiment.rdm.train.lr) == (7, 5.12e-4)
    assert (experiment.rdm.process.predict, experiment.rdm.process.schedule) == ("x0", "cosine")
    silent = ROOT / "configs" / "cifar10.yaml"  # says nothing of the RDM's sampler
    assert config.load(silent, ["rdm.sampler.steps=60"]).rdm.sampler.name == "unipc"
    assert config.load(silent, ["rdm.sampler.name=ddpm"]).rdm.sampler.steps == 50


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
    walk = Gaussian(GaussianConfig(**process))
    noisiest = walk.levels(1, "trailing")[0]
    x, output = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    error = walk.solve(output, x, noisiest.alpha, noisiest.sigma).x0.abs().item()
    assert GaussianConfig(**process).amplification == pytest.approx(error) == pytest.approx(times, rel=1e-3)


def test_noise_as_the_prediction_where_all_but_noise_is_gone_raises_a_doubt(tmp_path):
    (doubt,) = config.load(write(tmp_path), ["rdm.process.predict=eps"]).doubts()
    assert doubt.startswith("rdm.process: at the noisiest level an error of the predicted noise is 2.03e+04 times")
    assert "ddim with 4 steps" in doubt
    assert "predict: v or x0" in doubt
    eps = ["generator.process={predict: eps, schedule: cosine}"]
    assert [text.split(":")[0] for text in config.load(write(tmp_path), eps).doubts()] == ["generator.process"]
    clipped = [*eps, "generator.sampler.clip=true"]  # as the published ADM at 64 px
    assert not list(config.load(write(tmp_path), clipped).doubts())
    assert "mind: rdm.process" in tool("train_rdm", write(tmp_path), "rdm.process.predict=eps").stderr


def test_help_says_on_one_line_what_each_key_means_and_its_default():
    lines = config.describe().splitlines()
    keys = [line for line in lines if line.startswith("  ")]
    assert len(keys) > 100
    assert all(re.fullmatch(r"  [a-z_]+ +[^ \[].*[.\]]", line) for line in keys)
    assert all(line[:1].isalpha() and line.endswith((".", ":")) for line in lines if line and line not in keys)
    text = next(line for line in keys if line.split()[0] == "decay_all")
    assert text.endswith("too, as the published RDM does. [false]")


def test_values_are_frozen(tmp_path):
    with pytest.raises(ValidationError, match="frozen"):
        config.load(write(tmp_path)).seed = 3


def test_the_run_is_named_after_its_file(tmp_path):
    path = write(tmp_path)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("run:")))
    assert config.load(path).run == Path("runs/toy")


def test_import_strings_and_python_tags_are_not_understood(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("data: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not a YAML file"):
        config.load(path)
    with pytest.raises(UserError, match="no encoder is called"):
        config.load(write(tmp_path), ["encoder.name=os.path"])


def test_a_registry_refuses_a_second_class_of_one_name():
    registry = Registry("thing", "rcg.diffusion.samplers")
    registry.register(type("A", (), {"__module__": "somewhere.thing"}))
    with pytest.raises(ValueError, match="'thing' is registered twice"):
        registry.register(type("B", (), {"__module__": "elsewhere.thing"}))


def test_looking_a_name_up_imports_that_file_only():
    import subprocess
    import sys

    program = "import sys; from rcg.core.registry import ENCODERS; ENCODERS.names(); ENCODERS.get('moco_v3'); "
    program += "assert 'encoders.timm_model' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
