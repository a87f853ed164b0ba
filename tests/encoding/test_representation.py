"""Projections and normalizers against closed forms."""

import pytest
import torch

from rcg.config import ProjectionConfig
from rcg.core.errors import UserError
from rcg.encoding.transform import Transform


def data(count=2000, width=6):
    torch.manual_seed(0)
    scales = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])[:width]
    rotation = torch.linalg.qr(torch.randn(width, width)).Q
    return torch.randn(count, width) * scales @ rotation + 7, scales


def fitted(*args):
    transform = Transform(*args)
    transform.fit(data()[0])
    return transform


def test_per_sample_standardizes_over_features_without_being_fitted():
    z = Transform("per_sample")(data()[0])
    torch.testing.assert_close(z.mean(1), torch.zeros(len(z)), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(len(z)))
    assert not Transform("per_sample").needs_fit


def test_per_dataset_standardizes_each_feature_over_the_training_set():
    z = fitted("per_dataset")(data()[0])
    torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(6), atol=1e-4, rtol=0)


def test_the_projection_keeps_the_directions_of_largest_variance():
    rep, scales = data()
    z = fitted("none", ProjectionConfig(width=3))(rep)
    assert z.shape == (len(rep), 3)
    torch.testing.assert_close(z.std(0), scales[:3], rtol=0.05, atol=0)
    torch.testing.assert_close(torch.corrcoef(z.T), torch.eye(3), atol=1e-3, rtol=0)


def test_whitening_gives_unit_variances_before_the_normalizer():
    z = fitted("none", ProjectionConfig(width=4, whiten=True))(data()[0])
    torch.testing.assert_close(z.T.cov(), torch.eye(4), atol=1e-3, rtol=0)


def test_the_fit_is_state_and_identity():
    first, again = fitted("per_dataset", ProjectionConfig(width=3)), fitted("per_dataset", ProjectionConfig(width=3))
    assert first.id == again.id != fitted("per_dataset", ProjectionConfig(width=4)).id
    loaded = Transform("per_dataset", ProjectionConfig(width=3))
    loaded.load(first.state_dict(), 6, "file")
    assert torch.equal(loaded(data()[0]), first(data()[0]))
    other = Transform("per_dataset", ProjectionConfig(width=3))
    other.fit(data()[0] * 2)
    assert other.id != first.id


def test_a_projection_wider_than_the_representation_is_refused():
    with pytest.raises(UserError, match=r"projection.width is 9, but 2000 representations of width 6 have at most 6"):
        fitted("none", ProjectionConfig(width=9))
