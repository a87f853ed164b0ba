"""The linear probe against scikit-learn."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rcg.metrics.probe import LinearProbe
from rcg.metrics.representation import linear_accuracy


def draw(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = 2 * torch.eye(classes, 5)
    return (centers[labels] + torch.randn(count, 5, generator=generator)) * torch.tensor([1, 2, 3, 4, 50]) + 7, labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", [False, True])
def test_probabilities_equal_those_of_scikit_learn(classes, standardize):
    z, labels = draw(400, classes, 0)
    regression = LogisticRegression(C=0.1, max_iter=300)
    expected = make_pipeline(StandardScaler(), regression) if standardize else regression
    expected.fit(z.numpy(), labels.numpy())
    probe = LinearProbe.fit(z, labels, standardize)
    new, new_labels = draw(100, classes, 1)
    log_p = torch.from_numpy(expected.predict_log_proba(new.numpy())).float()
    torch.testing.assert_close(probe.log_probability(new), log_p, atol=1e-3, rtol=1e-3)
    assert probe.accuracy(new, new_labels) == pytest.approx(expected.score(new.numpy(), new_labels.numpy()))
    if standardize:
        assert linear_accuracy(z, labels, new, new_labels) == probe.accuracy(new, new_labels)


def test_a_label_that_is_absent_is_never_predicted_and_does_not_shift_the_others():
    z, labels = draw(300, 3, 0)
    probe = LinearProbe.fit(z, labels + (labels > 0))  # classes 0, 2 and 3
    log_p = probe.log_probability(z)
    assert log_p.shape == (300, 4)
    assert log_p[:, 1].eq(-torch.inf).all()
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(300))
    assert set(probe.predict(z).tolist()) == {0, 2, 3}


@pytest.mark.parametrize("label", [0, 2])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_probe_of_a_single_class_always_says_it(label, standardize):
    z, _ = draw(9, 3, 0)
    probe = LinearProbe.fit(z, torch.full((9,), label), standardize)
    assert probe.predict(z).tolist() == [label] * 9
    assert probe.log_probability(z)[:, label].eq(0).all()
    assert linear_accuracy(z, torch.full((9,), label), z, torch.full((9,), label)) == 1


def test_guidance_by_a_probe_without_some_classes_is_finite():
    z, labels = draw(300, 3, 0)
    probe = LinearProbe.fit(z, labels + (labels > 0))
    x = z[:4].clone().requires_grad_()
    probe.log_probability(x)[:, 2].sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()
