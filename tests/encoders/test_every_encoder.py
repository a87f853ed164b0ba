"""What every registered encoder promises."""

import pytest
import torch
from pydantic import ValidationError

from rcg.core.errors import UserError
from rcg.core.registry import ENCODERS
from rcg.encoding.representation import Representation
from rcg.encoding.transform import Transform
from tests.small import ENCODER


@pytest.fixture(params=ENCODERS.names())
def encoder(request):
    torch.manual_seed(0)  # with some seeds the tiny networks map images to a constant
    network = ENCODERS.get(request.param)
    return network(network.Config(**ENCODER.get(request.param, {})), image_size=32)


def test_its_config_is_frozen_and_carries_the_name_of_its_file(encoder):
    assert encoder.config.name in ENCODERS.names()
    with pytest.raises(ValidationError):
        encoder.config.name = "other"


def test_it_maps_images_of_any_size_to_vectors_that_do_not_depend_on_the_batch(encoder):
    representation = Representation(encoder, Transform("per_sample"))
    images = torch.rand(3, 3, 24, 24)
    z = representation(images)
    assert z.shape == (3, *representation.space.shape)
    assert not z.requires_grad
    torch.testing.assert_close(representation(images[1:2]), z[1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(z.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(3))


def test_its_patch_features_lie_on_its_grid(encoder):
    if encoder.grid is None:
        with pytest.raises(UserError, match="no features on a grid"):
            encoder.patch_features(torch.rand(2, 3, 24, 24))
    else:
        rows, columns = encoder.grid
        assert encoder.eval().patch_features(torch.rand(2, 3, 24, 24)).shape[:2] == (2, rows * columns)


def test_it_stays_frozen_inside_a_training_module(encoder):
    representation = Representation(encoder, Transform("none")).train()
    assert not any(module.training for module in representation.modules())


def test_its_identity_follows_weights_and_settings(encoder):
    first = Representation(encoder, Transform("none")).encoder_id
    assert Representation(encoder, Transform("per_sample")).encoder_id == first
    weights = next(iter(encoder.parameters()), None)
    if weights is None:
        pytest.skip("an encoder without weights")
    with torch.no_grad():
        weights.add_(1)
    assert Representation(encoder, Transform("none")).encoder_id != first
