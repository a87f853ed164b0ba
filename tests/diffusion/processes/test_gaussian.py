"""The Gaussian process against closed forms and recorded tables."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rcg.diffusion.processes._likelihood import discrete_log_likelihood, gaussian_kl
from rcg.diffusion.processes.gaussian import Gaussian, GaussianConfig, betas


@pytest.mark.parametrize("schedule", ["linear", "sqrt_linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_every_schedule_destroys_data_gradually(schedule, steps):
    process = Gaussian(GaussianConfig(schedule=schedule, steps=steps))
    assert np.all(np.diff(process.alpha_bar) < 0)
    assert process.alpha_bar[0] > 0.8
    assert process.alpha_bar[-1] < 0.02
    torch.testing.assert_close(process.alpha**2 + process.sigma**2, torch.ones(steps))


def test_schedules_equal_the_published_tables(data):
    recorded = load_file(data / "schedules.safetensors")
    np.testing.assert_allclose(betas("sqrt_linear", 1000), recorded["out/rdm_betas_f64"].numpy(), rtol=1e-12)
    np.testing.assert_allclose(betas("linear", 1000), recorded["out/dit_betas"].numpy(), rtol=1e-6)
    process = Gaussian(GaussianConfig(schedule="sqrt_linear"))
    np.testing.assert_allclose(process.alpha_bar, recorded["out/rdm_alphas_cumprod"].numpy(), rtol=1e-6)


def test_corrupted_data_has_the_marginal_mean_and_std():
    process = Gaussian(GaussianConfig())
    x = torch.full((20_000, 1), 2.0)
    for t in (0, 300, 999):
        noisy = process.corrupt(
            x, torch.full((20_000,), t), torch.randn(20_000, 1, generator=torch.Generator().manual_seed(t))
        )
        alpha_bar = process.alpha_bar[t]
        assert noisy.mean().item() == pytest.approx(2 * math.sqrt(alpha_bar), abs=0.03)
        assert noisy.std().item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=0.02)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_an_exact_network_has_no_loss_and_recovers_the_data(predict, monkeypatch):
    process = Gaussian(GaussianConfig(predict=predict))
    x, noise = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0, 10, 500, 800, 999])
    truth = process.target(x, times, noise)
    monkeypatch.setattr(process, "draw", lambda x: (times, noise))
    assert process.loss(lambda x_t, t, cond: truth[:, None], x, None)["mse"].item() == 0
    for i, t in enumerate(times.tolist()):
        x_t = process.corrupt(x[i : i + 1], times[i : i + 1], noise[i : i + 1])
        prediction = process.predict(lambda *_, i=i: truth[i : i + 1, None], x_t, process._level(t), None)
        torch.testing.assert_close(prediction.x0, x[i : i + 1], atol=2e-3, rtol=0)
        torch.testing.assert_close(prediction.eps, noise[i : i + 1], atol=2e-3, rtol=0)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_the_loss_is_smallest_for_the_ideal_denoiser(predict):
    # Data N(0, 1): E[x0 | x_t] = alpha x_t and E[eps | x_t] = sigma x_t, so v = 0 for every x_t.
    process = Gaussian(GaussianConfig(predict=predict))

    def net(x, t, cond, tilt=0.0):
        alpha, sigma = process.alpha[t][:, None], process.sigma[t][:, None]
        answer = {"x0": alpha * x, "eps": sigma * x, "v": 0 * x}[predict]
        return (answer + tilt * x)[:, None]

    losses = []
    for tilt in (-0.2, 0.0, 0.2):
        torch.manual_seed(0)
        losses.append(
            process.loss(lambda x, t, c, tilt=tilt: net(x, t, c, tilt), torch.randn(50_000, 1), None)["mse"].item()
        )
    assert losses[1] < min(losses[0], losses[2])
    expected = {"x0": np.mean(1 - process.alpha_bar), "eps": np.mean(process.alpha_bar), "v": 1.0}[predict]
    assert losses[1] == pytest.approx(expected, rel=0.03)


def test_the_variational_term_is_exact_where_the_variance_is_right():
    # Data N(0, 1): the ideal step back has variance beta, which is its upper bound; eps = sigma x_t is the ideal mean.
    process = Gaussian(GaussianConfig(variance="learned_range"))

    def net(x, t, cond, share):
        return torch.stack([process.sigma[t][:, None] * x, torch.full_like(x, 2 * share - 1)], dim=1)

    losses = []
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        losses.append(process.loss(lambda x, t, c, s=share: net(x, t, c, s), torch.randn(20_000, 1), None)["vb"].item())
    assert losses[2] < losses[1] < losses[0]


def test_the_variational_term_has_gradients_of_the_variance_alone():
    process = Gaussian(GaussianConfig(variance="learned_range"))
    output = torch.zeros(4, 2, 3, requires_grad=True)
    process.loss(lambda x, t, c: output, torch.randn(4, 3), None)["vb"].backward()
    assert output.grad[:, 0].abs().sum() == 0
    assert output.grad[:, 1].abs().min() > 0


def test_all_8_bit_values_together_have_probability_one():
    values = torch.arange(256) / 127.5 - 1
    for mean, log_variance in ((0.3, -4.0), (-0.99, -9.0), (0.0, 0.0)):
        log_p = discrete_log_likelihood(values, torch.tensor(mean), torch.tensor(log_variance))
        assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_divergence_of_gaussians_equals_that_of_torch():
    m, v, n, w = torch.randn(4, 10)
    p, q = (torch.distributions.Normal(mean, (log / 2).exp()) for mean, log in ((m, v), (n, w)))
    torch.testing.assert_close(gaussian_kl(m - n, v, w), torch.distributions.kl_divergence(p, q))


@pytest.mark.parametrize(("variance", "share"), [("fixed_small", 0.0), ("fixed_large", 1.0), ("learned_range", 0.75)])
def test_predictions_contain_the_share_of_the_variance(variance, share):
    process = Gaussian(GaussianConfig(variance=variance))
    output = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 0.5)], dim=1)[:, : process.outputs]
    prediction = process.predict(lambda *_: output, torch.zeros(2, 3), process._level(500), None)
    assert torch.as_tensor(prediction.variance_share).flatten()[0].item() == share
