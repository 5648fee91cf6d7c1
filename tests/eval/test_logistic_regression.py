"""Logistic regression against scikit-learn's solution and against the derivative of its own loss."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from franca.eval.protocols import logistic_regression
from franca.eval.protocols.logistic_regression import fit_logistic, loss_and_gradient


def problem(rows: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=random, dtype=torch.float64)
    return centres[labels] + 2 * torch.randn(rows, width, generator=random, dtype=torch.float64) + 0.5, labels


@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equals_scikit_learn(strength, classes) -> None:
    features, labels = problem(150, 6, classes)
    reference = LogisticRegression(C=strength, solver="newton-cg", tol=1e-11, max_iter=10_000).fit(
        features.numpy(), labels.numpy()
    )
    found = fit_logistic(features, labels, classes, strength, tolerance=1e-10)
    weight, bias = found.weight.numpy(), found.bias.numpy()
    if classes == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        wanted_bias = reference.intercept_
    else:
        wanted_bias = reference.intercept_ - reference.intercept_.mean()
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-6)
    np.testing.assert_allclose(bias, wanted_bias, atol=1e-6)


def test_gradient_is_the_derivative_of_the_loss() -> None:
    features, labels = problem(20, 4, 3)
    parameters = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, gradient = loss_and_gradient(parameters, features, labels, 0.3)
    wanted = torch.autograd.grad(loss, parameters)[0]
    torch.testing.assert_close(gradient.detach(), wanted)
    plain = torch.nn.functional.cross_entropy(features @ parameters[:, :4].T + parameters[:, 4], labels)
    torch.testing.assert_close(loss, plain + 0.15 * parameters[:, :4].square().sum())


def test_where_it_starts_and_how_rows_are_cut_does_not_matter(monkeypatch) -> None:
    features, labels = problem(90, 5, 4)
    plain = fit_logistic(features, labels, 4, 2.0, tolerance=1e-11)
    other = fit_logistic(features, labels, 4, 0.01)
    monkeypatch.setattr(logistic_regression, "ROWS", 7)
    warm = fit_logistic(features, labels, 4, 2.0, start=other, tolerance=1e-11)
    torch.testing.assert_close(warm.weight, plain.weight, atol=1e-7, rtol=0)
    torch.testing.assert_close(warm.bias, plain.bias, atol=1e-7, rtol=0)


def test_stops_where_the_gradient_is_small_or_after_the_last_step() -> None:
    features, labels = problem(90, 5, 4)
    found = fit_logistic(features, labels, 4, 1.0, tolerance=1e-7)
    assert found.gradient <= 1e-7
    assert fit_logistic(features, labels, 4, 1.0, steps=2).steps == 2


def test_fp32_comes_near() -> None:
    features, labels = problem(120, 5, 4)
    exact = fit_logistic(features, labels, 4, 1.0)
    rounded = fit_logistic(features.float(), labels, 4, 1.0)
    assert rounded.weight.dtype == torch.float32
    torch.testing.assert_close(rounded.weight.double(), exact.weight, atol=1e-3, rtol=0)


def test_scales_of_many_magnitudes_stay_finite() -> None:
    """Separable rows and next to no penalty: the weights would grow without bound."""
    labels = torch.arange(30) % 3
    features = torch.nn.functional.one_hot(labels).double() * 100
    for strength in (1e-6, 1e5):
        found = fit_logistic(features, labels, 3, strength)
        assert found.weight.isfinite().all()
        assert ((features @ found.weight.T + found.bias).argmax(1) == labels).all()
