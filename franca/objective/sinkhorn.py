"""Sinkhorn-Knopp in the log domain: teacher logits to balanced soft assignments.

N rows (crops or patches), K prototypes, L = logits / temperature, (N, K). From v = 0 every round first gives each
prototype the same total mass over all rows of all ranks, then each row the mass 1:

    u_k = -logsumexp_n(L_nk + v_n)
    v_n = -logsumexp_k(L_nk + u_k)

and the assignments are q = exp(L + u + v). Only u and v are kept between rounds, so nothing overflows and no (N, K)
matrix is stored but the result; the usual form's constants (total mass, N, K) cancel in the last row step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LogSumExpOverRanks = Callable[[Tensor], Tensor]


def sinkhorn_assignments(
    logits: Tensor,
    temperature: float | Tensor,
    iterations: int = 3,
    valid: Tensor | None = None,
    logsumexp_over_ranks: LogSumExpOverRanks | None = None,
) -> Tensor:
    """Balanced assignments of rows to prototypes: (N, K) -> (N, K), fp32 (fp64 for fp64), rows sum to 1, no gradient.

    temperature: a number or a 0-dim tensor. valid: (N,) bool; other rows take no part, whatever they hold, and return
    zeros. logsumexp_over_ranks: given the (K,) column log-masses of this rank returns those of all ranks.
    Raises ValueError for a temperature or a number of iterations that is not positive, or tensors of another form.
    """
    return joint_sinkhorn_assignments([logits], temperature, iterations, [valid], logsumexp_over_ranks)[0]


@torch.no_grad()
def joint_sinkhorn_assignments(
    logits: Sequence[Tensor],
    temperature: float | Tensor,
    iterations: int = 3,
    valid: Sequence[Tensor | None] | None = None,
    logsumexp_over_ranks: LogSumExpOverRanks | None = None,
) -> list[Tensor]:
    """`sinkhorn_assignments` of several independent problems (levels, heads), each (N_i, K_i), one collective a round.

    It replaces `[sinkhorn_assignments(x, ...) for x in logits]`; the column masses of all problems travel as one vector
    of sum(K_i) entries.
    """
    if not logits:
        return []
    valid = [None] * len(logits) if valid is None else valid
    _check(logits, temperature, iterations, valid)
    scale = _inverse(temperature, logits[0])
    v = [scale.new_zeros(len(scores)) for scores in logits]
    u = _column_potentials(logits, scale, v, valid, logsumexp_over_ranks)
    for _ in range(iterations - 1):
        v = [-_logsumexp_(_shifted(scores, scale, k), dim=1) for scores, k in zip(logits, u, strict=True)]
        u = _column_potentials(logits, scale, v, valid, logsumexp_over_ranks)
    # The last row step, exp(L + u + v) with v = -logsumexp_k(L + u), is a softmax.
    assignments = [_shifted(scores, scale, columns).softmax(dim=1) for scores, columns in zip(logits, u, strict=True)]
    for result, rows in zip(assignments, valid, strict=True):
        if rows is not None:
            result.masked_fill_(~rows[:, None], 0.0)
    return assignments


def _logsumexp_(scores: Tensor, dim: int) -> Tensor:
    """logsumexp over `dim`, written in place: `scores` is lost. Of nothing, or of -inf alone, -inf."""
    if scores.shape[dim] == 0:
        return scores.logsumexp(dim)
    peak = scores.amax(dim, keepdim=True)
    scores.sub_(peak.masked_fill(peak.isneginf(), 0.0))
    # exp(-80) is nothing beside the peak's 1, and results that underflow make exp ten times slower on a CPU.
    return scores.clamp_(min=-80.0).exp_().sum(dim).log_().add_(peak.squeeze(dim))


def _shifted(logits: Tensor, scale: Tensor, potential: Tensor) -> Tensor:
    """logits * scale + potential, (N, K) in one allocation; potential (N, 1) of rows or (K,) of prototypes."""
    return (logits * scale).add_(potential)


def _column_potentials(
    logits: Sequence[Tensor],
    scale: Tensor,
    row_potentials: Sequence[Tensor],
    valid: Sequence[Tensor | None],
    over_ranks: LogSumExpOverRanks | None,
) -> tuple[Tensor, ...]:
    """u of every problem, (K_i,), from its v, (N_i,)."""
    masses = []
    for scores, v, rows in zip(logits, row_potentials, valid, strict=True):
        shifted = _shifted(scores, scale, v[:, None])
        if rows is not None:
            shifted.masked_fill_(~rows[:, None], -torch.inf)  # whatever stands there, NaN too
        masses.append(_logsumexp_(shifted, dim=0))
    mass = torch.cat(masses)
    if over_ranks is not None:
        mass = over_ranks(mass)
    # Without a valid row anywhere the mass is -inf and the rows become NaN; all of them are zeroed at the end.
    return (-mass).split([scores.shape[1] for scores in logits])


def _inverse(temperature: float | Tensor, logits: Tensor) -> Tensor:
    """1 / temperature, (1,), made without waiting for the device; a 0-dim tensor would multiply in bf16.

    Its type is that of all that follows: fp32, or fp64 for logits in fp64.
    """
    kind, device = torch.promote_types(logits.dtype, torch.float32), logits.device
    if isinstance(temperature, Tensor):
        return temperature.to(device, kind, non_blocking=True).reciprocal().view(1)
    return torch.full((1,), 1.0 / temperature, device=device, dtype=kind)


def _check(
    logits: Sequence[Tensor], temperature: float | Tensor, iterations: int, valid: Sequence[Tensor | None]
) -> None:
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(
            f"Sinkhorn temperature is {temperature}: it divides the logits and must be above 0, such as 0.04"
        )
    if iterations < 1:
        raise ValueError(f"Sinkhorn iterations is {iterations}: at least 1 round is needed, the usual number is 3")
    for scores, rows in zip(logits, valid, strict=True):
        if scores.ndim != 2:
            raise ValueError(f"logits of shape {tuple(scores.shape)}: Sinkhorn needs rows and prototypes, (N, K)")
        if rows is not None and (rows.dtype != torch.bool or rows.shape != scores.shape[:1]):
            raise ValueError(
                f"valid is {rows.dtype} of shape {tuple(rows.shape)}: logits of shape {tuple(scores.shape)} need bool "
                f"of shape ({len(scores)},), one entry per row"
            )
