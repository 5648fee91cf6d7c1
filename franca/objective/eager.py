"""The objective's arithmetic in whole matrices, as the formulas read: what the streaming form is measured against."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from franca.models.matryoshka_head import Factors
from franca.objective.precision import full_precision, precise
from franca.objective.prediction import Prediction
from franca.objective.pretraining import PretrainingObjective
from franca.objective.sinkhorn import OverRanks


@dataclass(frozen=True)
class WrittenAssignments:
    """Assignments as a matrix: q (N, K)."""

    q: Tensor

    def __len__(self) -> int:
        return len(self.q)

    def __getitem__(self, rows: slice) -> "WrittenAssignments":
        return WrittenAssignments(self.q[rows])

    def dense(self) -> Tensor:
        return self.q


@torch.no_grad()
def assignments(
    logits: Tensor,
    temperature: float | Tensor,
    iterations: int = 3,
    valid: Tensor | None = None,
    logsumexp_over_ranks: OverRanks | None = None,
) -> Tensor:
    """Sinkhorn-Knopp in the log domain, (N, K) -> q (N, K): `sinkhorn_assignments` in whole matrices."""
    with full_precision(logits.device):
        scaled = precise(logits) / temperature
        if valid is not None:
            scaled = scaled.masked_fill(~valid[:, None], -torch.inf)
        v = scaled.new_zeros(len(scaled))
        for _ in range(iterations):
            mass = (scaled + v[:, None]).logsumexp(dim=0)
            u = -(logsumexp_over_ranks(mass) if logsumexp_over_ranks else mass)
            v = -(scaled + u).logsumexp(dim=1)
            v = v if valid is None else v.masked_fill(~valid, 0.0)
        q = (scaled + u + v[:, None]).exp()
        return q if valid is None else q.masked_fill(~valid[:, None], 0.0)


def cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-sum_k q_nk log softmax_k(logits / temperature): (..., N, K) and q (N, K) -> (..., N)."""
    with full_precision(logits.device):
        return -(target * F.log_softmax(precise(logits) / temperature, dim=-1)).sum(dim=-1)


def predict(
    rows: Tensor,
    prototypes: Tensor,
    weights: Tensor,
    targets: Sequence[WrittenAssignments],
    teachers: Sequence[tuple[int, ...]],
    temperature: float,
    choose: bool = False,
) -> Prediction:
    """`franca.objective.prediction.predict` with logits kept and gradients by autograd."""
    logits = F.linear(rows, prototypes.to(rows.dtype)).unflatten(0, (len(teachers), -1))
    wanted = [reduce(torch.add, [targets[number].q for number in key]) for key in teachers]
    per_row = torch.stack(
        [cross_entropy(view, target, temperature) for view, target in zip(logits, wanted, strict=True)]
    )
    choices = logits.detach().argmax(dim=-1) if choose else None
    return Prediction(per_row.flatten() @ weights, per_row.detach(), choices)


class EagerObjective(PretrainingObjective):
    """`PretrainingObjective` in whole matrices."""

    def balance(  # type: ignore[override]
        self, factors: Sequence[Factors], valid: Sequence[Tensor | None], temperature: float | Tensor
    ) -> list[WrittenAssignments]:
        iterations, over_ranks = self.config.sinkhorn_iterations, self.logsumexp_over_ranks
        return [
            WrittenAssignments(
                assignments(
                    F.linear(level.rows, level.prototypes.to(level.rows.dtype)),
                    temperature,
                    iterations,
                    rows,
                    over_ranks,
                )
            )
            for level, rows in zip(factors, valid, strict=True)
        ]

    predict = staticmethod(predict)  # type: ignore[assignment]
