"""Curves of metrics over a training, and distances as of infinitely many samples, against closed forms."""

import pytest
import torch

from rcg.metrics.forecast import PowerLaw
from rcg.metrics.frechet import FittedGaussian, frechet_distance, intercept, unbiased_distance


def test_the_fit_recovers_a_power_law():
    steps = [200, 400, 800, 1600]
    law = PowerLaw.fit(steps, [300 * step**-0.4 for step in steps])
    assert law == pytest.approx((300, 0.4), rel=1e-9)
    assert law.at(6400) == pytest.approx(300 * 6400**-0.4, rel=1e-9)


def test_a_rising_metric_is_expected_to_rise():
    assert PowerLaw.fit([100, 200, 300], [1.0, 2.0, 3.0]).at(400) == pytest.approx(4.0, rel=1e-9)


def test_early_values_follow_another_law_and_are_left_out():
    steps = [1, 100, 200, 400, 800]
    assert PowerLaw.fit(steps, [1e9, *(50 / step for step in steps[1:])]).exponent == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("steps", "values"), [([], []), ([1, 2], [3.0, 2.0]), ([10, 20, 30], [3.0, -0.1, 2.0])])
def test_too_few_positive_values_give_no_curve(steps, values):
    assert PowerLaw.fit(steps, values) is None


def test_a_line_in_one_over_the_count_is_extrapolated_exactly():
    counts = [64, 128, 256, 1000]
    assert intercept([1 / n for n in counts], [7.5 + 300 / n for n in counts]) == pytest.approx(7.5, rel=1e-9)


@pytest.mark.parametrize("count", [64, 128, 512])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.2, 0.6)])
def test_the_bias_is_gone_even_below_as_many_samples_as_dimensions(count, shift, scale):
    generator = torch.Generator().manual_seed(count)
    width = 128
    spectrum = torch.arange(1, width + 1) ** -0.7
    real, held_out, x = (torch.randn(n, width, generator=generator) * spectrum.sqrt() for n in (4000, 512, count))
    x = scale * x + shift * spectrum.sqrt()
    closed = float((shift**2 + (1 - scale) ** 2) * spectrum.sum())
    biased = frechet_distance(x, real)
    estimate = unbiased_distance(x, held_out, FittedGaussian.fit(real))
    assert abs(estimate - closed) < 0.2 * (biased - closed), (estimate, closed, biased)
