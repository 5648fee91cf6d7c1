"""Multinomial logistic regression with an L2 penalty, solved by L-BFGS on any device.

Minimises  C * sum_i CE(softmax(W x_i + b), y_i) + 1/2 |W|^2,  the bias being free: what scikit-learn's
LogisticRegression(C=C) minimises. For two classes that is one logistic function of w = W_1 - W_0 with the penalty
1/2 |w|^2, twice what the softmax form alone would give.

Legend: N rows, D width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

ROWS = 16_384  # whose probabilities are there at once
HISTORY = 20  # steps that L-BFGS remembers
SMALLEST_CHANGE = 1e-16  # of the loss: none that fp64 could hold, the line search has stalled


@dataclass(frozen=True)
class Solution:
    """Weights, and how the solver left them."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,) with sum 0: only differences matter
    steps: int
    gradient: float  # largest entry of the gradient of the mean loss


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
        tolerance: largest entry of the gradient of the objective divided by C * N at which to stop.
    """
    width = features.shape[1]
    parameters = features.new_zeros(classes, width + 1)
    if start is not None:
        parameters = torch.cat([start.weight, start.bias[:, None]], dim=1).to(features)
    parameters.requires_grad_()
    penalty = (2 if classes == 2 else 1) / (strength * len(features))
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=steps,
        max_eval=steps * 25,
        tolerance_grad=tolerance,
        tolerance_change=SMALLEST_CHANGE,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        loss, parameters.grad = loss_and_gradient(parameters.detach(), features, labels, penalty)
        return loss

    solver.step(objective)
    state = solver.state[parameters]
    objective()
    assert parameters.grad is not None
    found = parameters.detach()
    bias = found[:, -1] - found[:, -1].mean()
    return Solution(found[:, :-1].clone(), bias, int(state["n_iter"]), float(parameters.grad.abs().max()))


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
