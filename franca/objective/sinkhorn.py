"""Sinkhorn-Knopp that keeps one potential per prototype: teacher logits to balanced soft assignments.

N rows (crops or patches), K prototypes, L = logits / temperature, (N, K). From v = 0 every round first gives each
prototype the same total mass over all rows of all ranks, then each row the mass 1:

    u_k = -logsumexp_n(L_nk + v_n)
    v_n = -logsumexp_k(L_nk + u_k)

and the assignments are q = exp(L + u + v). After a row step q is the softmax over prototypes of L + u, and the next
column step is u_k <- u_k - log sum_n q_nk: from the second round on a round is one pass over the logits and a plain sum
over the ranks. No such sum can underflow: after a column step a prototype's mass is 1, so that some row has 1 / N of it
at least, and as no row's mass exceeds K, 1 / (N K) after the row step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from franca.objective.assignments import Assignments, Scores
from franca.objective.passes import column_logsumexp, column_sums
from franca.objective.precision import full_precision

OverRanks = Callable[[Tensor], Tensor]


def sinkhorn_assignments(
    logits: Tensor,
    temperature: float | Tensor,
    iterations: int = 3,
    valid: Tensor | None = None,
    logsumexp_over_ranks: OverRanks | None = None,
) -> Tensor:
    """Balanced assignments of rows to prototypes: (N, K) -> (N, K), fp32 (fp64 for fp64), rows sum to 1, no gradient.

    temperature: a number or a 0-dim tensor. valid: (N,) bool; other rows take no part, whatever they hold, and return
    zeros. logsumexp_over_ranks: given the (K,) column log-masses of this rank returns those of all ranks.
    Raises ValueError for a temperature or a number of iterations that is not positive, or tensors of another form.
    """
    _check_rows(logits, valid)
    (assignments,) = balance([Scores.of_logits(logits, valid)], temperature, iterations, logsumexp_over_ranks)
    return assignments.dense()


@torch.no_grad()
def balance(
    problems: Sequence[Scores],
    temperature: float | Tensor,
    iterations: int = 3,
    logsumexp_over_ranks: OverRanks | None = None,
    sum_over_ranks: OverRanks | None = None,
) -> list[Assignments]:
    """Balanced assignments of several independent problems (levels, heads), whose column masses travel as one vector.

    sum_over_ranks: adds up plain masses, in one collective a round; without it they travel as logarithms.
    Raises ValueError for a temperature or a number of iterations that is not positive.
    """
    if not problems:
        return []
    _check_settings(temperature, iterations)
    scale = _inverse(temperature, problems[0])
    widths = [scores.values.shape[1] for scores in problems]
    with full_precision(scale.device):
        mass = torch.cat([column_logsumexp(scores, scale) for scores in problems])
        mass = logsumexp_over_ranks(mass) if logsumexp_over_ranks else mass
        potentials = -_finite(mass)
        for _ in range(iterations - 1):
            now = zip(problems, potentials.split(widths), strict=True)
            sums = torch.cat([column_sums(Assignments(scores, u, scale)) for scores, u in now])
            potentials = potentials - _finite(_log_total(sums, logsumexp_over_ranks, sum_over_ranks))
    return [Assignments(scores, u, scale) for scores, u in zip(problems, potentials.split(widths), strict=True)]


def _log_total(sums: Tensor, logsumexp_over_ranks: OverRanks | None, sum_over_ranks: OverRanks | None) -> Tensor:
    if sum_over_ranks:
        return sum_over_ranks(sums).log()
    return logsumexp_over_ranks(sums.log()) if logsumexp_over_ranks else sums.log()


def _finite(mass: Tensor) -> Tensor:
    """Without a row anywhere that takes part masses are log 0, and nothing is to be balanced; else none is 0."""
    return mass.masked_fill(mass.isneginf(), 0.0)


def _inverse(temperature: float | Tensor, scores: Scores) -> Tensor:
    """1 / temperature, (1,), made without waiting for the device, in fp32 at least as all that follows."""
    kind, device = scores.peaks.dtype, scores.peaks.device
    if isinstance(temperature, Tensor):
        return temperature.to(device, kind, non_blocking=True).reciprocal().view(1)
    return torch.full((1,), 1.0 / temperature, device=device, dtype=kind)


def _check_settings(temperature: float | Tensor, iterations: int) -> None:
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(
            f"Sinkhorn temperature is {temperature}: it divides the logits and must be above 0, such as 0.04"
        )
    if iterations < 1:
        raise ValueError(f"Sinkhorn iterations is {iterations}: at least 1 round is needed, the usual number is 3")


def _check_rows(logits: Tensor, valid: Tensor | None) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: Sinkhorn needs rows and prototypes, (N, K)")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != logits.shape[:1]):
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)}: logits of shape {tuple(logits.shape)} need bool "
            f"of shape ({len(logits)},), one entry per row"
        )
