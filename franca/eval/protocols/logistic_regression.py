"""Multinomial logistic regression with an L2 penalty, solved by L-BFGS on any device.

Minimises  C * sum_i CE(softmax(W x_i + b), y_i) + 1/2 |W|^2,  the bias being free: what scikit-learn's
LogisticRegression(C=C) minimises. For two classes that is one logistic function of w = W_1 - W_0 with the penalty
1/2 |w|^2, twice what the softmax form alone would give.

L-BFGS works on V and c, where W = V * scale and b = c * bias_scale - W @ mean(x): centred features whose curvature is
near 1 in every direction of an axis. The minimum is the same, and strong penalties take few steps instead of thousands.

Legend: N rows, D width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

ROWS = 16_384  # whose probabilities are there at once
HISTORY = 20  # steps that L-BFGS remembers
TINY = 1e-12  # curvature of a feature that never changes and has no penalty to speak of
SMALLEST_CHANGE = 1e-15  # of the loss: next to none that fp64 can hold, the line search has stalled


@dataclass(frozen=True)
class Solution:
    """Weights, and how the solver left them."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,) with sum 0: only differences matter
    steps: int
    gradient: float  # largest entry of the gradient that the solver sees


@torch.no_grad()
def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    start: Solution | None = None,
    steps: int = 1000,
    tolerance: float = 1e-7,
) -> Solution:
    """The minimum.

    Args:
        features: (N, D), in the type and on the device to compute with. labels: (N,) int64, on the same device.
        strength: C, the inverse of the penalty.
        start: where to begin, for example the solution for another strength; None: zeros.
        steps: at most.
        tolerance: largest entry of the gradient, by V and c, of the objective divided by C * N at which to stop.
    """
    penalty = (2 if classes == 2 else 1) / (strength * len(features))
    axes = _axes(features, classes, penalty)
    inner = features.new_zeros(classes, features.shape[1] + 1)
    if start is not None:
        inner = axes.inward(torch.cat([start.weight, start.bias[:, None]], dim=1).to(features))
    inner.requires_grad_()
    solver = torch.optim.LBFGS(
        [inner],
        max_iter=steps,
        max_eval=steps * 25,
        tolerance_grad=tolerance,
        tolerance_change=SMALLEST_CHANGE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        loss, gradient = loss_and_gradient(axes.outward(inner.detach()), features, labels, penalty)
        inner.grad = axes.gradient(gradient)
        return loss

    solver.step(objective)
    objective()
    assert inner.grad is not None
    found = axes.outward(inner.detach())
    bias = found[:, -1] - found[:, -1].mean()
    return Solution(found[:, :-1].clone(), bias, int(solver.state[inner]["n_iter"]), float(inner.grad.abs().max()))


@dataclass(frozen=True)
class _Axes:
    """The coordinates of the solver."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    bias_scale: float

    def outward(self, inner: Tensor) -> Tensor:
        """V and c side by side, (K, D + 1) -> W and b."""
        weight = inner[:, :-1] * self.scale
        return torch.cat([weight, (inner[:, -1] * self.bias_scale - weight @ self.mean)[:, None]], dim=1)

    def inward(self, outer: Tensor) -> Tensor:
        """The inverse of `outward`."""
        weight, bias = outer[:, :-1], outer[:, -1]
        return torch.cat([weight / self.scale, ((bias + weight @ self.mean) / self.bias_scale)[:, None]], dim=1)

    def gradient(self, outer: Tensor) -> Tensor:
        """By V and c from that by W and b."""
        bias = outer[:, -1:]
        return torch.cat([(outer[:, :-1] - bias * self.mean) * self.scale, bias * self.bias_scale], dim=1)


def _axes(features: Tensor, classes: int, penalty: float) -> _Axes:
    share = (classes - 1) / classes**2  # curvature of the cross-entropy where all classes are as likely
    variance = features.var(dim=0, correction=0)
    return _Axes(features.mean(dim=0), (penalty + share * variance).clamp_min(TINY).rsqrt(), share**-0.5)


def loss_and_gradient(parameters: Tensor, features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy + penalty / 2 * |W|^2, and its gradient.

    Args:
        parameters: (K, D + 1), W and b side by side. features: (N, D). labels: (N,).
    """
    weight, bias = parameters[:, :-1], parameters[:, -1]
    loss, gradient = penalty / 2 * weight.square().sum(), torch.zeros_like(parameters)
    for rows, wanted in zip(features.split(ROWS), labels.split(ROWS), strict=True):
        log_shares = torch.addmm(bias, rows, weight.T).log_softmax(dim=1)
        loss = loss - log_shares.gather(1, wanted[:, None]).sum() / len(features)
        excess = (log_shares.exp() - one_hot(wanted, len(bias))) / len(features)
        gradient[:, :-1] += excess.T @ rows
        gradient[:, -1] += excess.sum(dim=0)
    gradient[:, :-1] += penalty * weight
    return loss, gradient
