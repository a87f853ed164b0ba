"""The roles of fields: what may change in a resumed training, and what decides the output of given weights."""

from typing import Annotated

import pytest
from pydantic import ConfigDict

from rcg.config import (
    ORIGIN,
    OWN,
    RUNTIME,
    Config,
    EncoderConfig,
    GeneratorConfig,
    ModelConfig,
    TrainableAutoencoderConfig,
    TrainConfig,
    dump_without,
    identity,
    load_experiment,
    training_identity,
)
from rcg.config.base import roles
from rcg.core.registry import AUTOENCODERS, ENCODERS, GENERATORS, NETWORKS
from tests.toy import write


class Inner(Config):
    steps: Annotated[int, RUNTIME] = 1
    width: int = 2


class Base(Config):
    model_config = ConfigDict(extra="forbid", frozen=True)
    source: Annotated[str, ORIGIN] = "file"
    speed: Annotated[int, RUNTIME, OWN] = 3
    inner: Inner = Inner()


class Derived(Base):
    source: str = "another file"
    speed: int = 4


def test_a_field_that_a_subclass_defines_again_has_the_roles_of_its_bases():
    assert roles(Derived, "source") == {ORIGIN}
    assert roles(Derived, "speed") == {RUNTIME, OWN}
    assert roles(Derived, "inner") == set()


def test_fields_are_left_out_by_role_at_any_depth():
    everything = {"source": "another file", "speed": 4, "inner": {"steps": 1, "width": 2}}
    assert dump_without(Derived()) == everything
    assert dump_without(Derived(), RUNTIME) == {"source": "another file", "inner": {"width": 2}}
    assert dump_without(Derived(), ORIGIN) == {"speed": 4, "inner": {"steps": 1, "width": 2}}
    assert identity(Derived()) == {"inner": {"width": 2}}
    assert training_identity(Derived()) == {"source": "another file", "inner": {"width": 2}}


@pytest.mark.parametrize("registry", [NETWORKS, GENERATORS])
def test_every_models_training_says_where_its_weights_come_from(registry):
    for name in registry.names():
        schema = registry.get(name).Config
        assert roles(schema, "train") == {ORIGIN}, name
        assert roles(schema, "sampler") == {RUNTIME, OWN}, name
        assert roles(schema, "guidance") == {RUNTIME, OWN}, name
        assert roles(schema, "process") == {OWN}, name
        assert "train" not in identity(schema()), name


@pytest.mark.parametrize(("registry", "base"), [(ENCODERS, EncoderConfig), (AUTOENCODERS, TrainableAutoencoderConfig)])
def test_weights_and_training_of_every_frozen_network_are_their_origin(registry, base):
    schemas = [registry.get(name).Config for name in registry.names()]
    tested = [schema for schema in schemas if issubclass(schema, base)]
    assert tested
    for schema in tested:
        assert ORIGIN in roles(schema, "weights"), schema
        assert roles(schema, "train") == {ORIGIN}, schema


def test_the_length_of_a_training_may_change_and_its_learning_rate_may_not():
    assert "steps" not in training_identity(TrainConfig())
    assert not {"log_every", "evaluate_every", "save_every", "patience", "tracker"} & set(
        training_identity(TrainConfig())
    )
    assert {"betas", "batch_size", "grad_accum_steps", "ema_decay"} <= set(training_identity(TrainConfig()))


def test_a_model_is_trained_as_its_config_says_but_of_its_neighbors_only_the_identity_counts(tmp_path):
    experiment = load_experiment(write(tmp_path), ["generator.autoencoder={name: kl, weights: a.safetensors}"])
    values = training_identity(experiment.generator)
    assert values["train"]["batch_size"] == experiment.generator.train.batch_size
    assert not {"sampler", "guidance"} & set(values)
    assert not {"weights", "train"} & set(values["autoencoder"])
    assert values["autoencoder"]["channels"] == experiment.generator.autoencoder.channels
    other = load_experiment(write(tmp_path), ["generator.autoencoder={name: kl, weights: b.safetensors}"])
    assert training_identity(other.generator) == values


def test_what_all_components_share_is_never_their_own():
    assert OWN not in roles(GeneratorConfig, "condition")
    assert OWN not in roles(ModelConfig, "train")
    assert OWN not in roles(GeneratorConfig, "grad_checkpointing")
    assert {key for key in GeneratorConfig.model_fields if OWN in roles(GeneratorConfig, key)} == {
        "process",
        "sampler",
        "guidance",
        "align",
        "perceptual",
        "early_exit",
        "joint_representation",
        "joint_weight",
        "autoencoder",
    }
