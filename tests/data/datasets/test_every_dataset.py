"""One sweep over the registry: a new data set is tested the moment its file exists."""

import pytest
from pydantic import ValidationError

from rcg.config import DataConfig
from rcg.core.registry import DATASETS


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_config_builds_from_defaults_under_its_files_name(name: str) -> None:
    config = DATASETS.get(name).Config()
    assert isinstance(config, DataConfig)
    assert config.name == name


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_config_is_frozen_and_read_back_from_its_own_dump(name: str) -> None:
    config = DATASETS.get(name).Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.image_size = 8
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_key_of_every_config_is_described(name: str) -> None:
    fields = DATASETS.get(name).Config.model_fields
    assert [key for key, field in fields.items() if key != "name" and not field.description] == []


def test_the_known_data_sets_are_found() -> None:
    known = {"digits", "image_folder", "mnist", "fashion_mnist", "cifar10", "stl10", "imagenet"}
    assert known <= set(DATASETS.names())
