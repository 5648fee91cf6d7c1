"""The cross-entropy of a student's prediction and its gradient, from rows and prototypes: logits are never kept whole.

C views of N rows each, V targets of N rows, K prototypes, D bottleneck width. A block of logits is multiplied out,
turned into its gradient in place, and multiplied back into the gradients of rows and prototypes, all in the forward
pass; the backward pass has only to scale these.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from franca.objective.assignments import Assignments
from franca.objective.blocks import row_blocks, scores_at_once
from franca.objective.chunked import GAIN
from franca.objective.passes import cross_entropy
from franca.objective.precision import add_product_, factor_type, full_precision, product


class Prediction(NamedTuple):
    """Of one level of one head."""

    loss: Tensor  # scalar: the weighted sum over all rows, with gradient
    per_row: Tensor  # (C, N): cross-entropies without weights, detached
    choices: Tensor | None  # (C, N) int64: each row's best prototype, if asked for


def predict(
    rows: Tensor,
    prototypes: Tensor,
    weights: Tensor,
    targets: Sequence[Assignments],
    teachers: Sequence[tuple[int, ...]],
    temperature: float,
    choose: bool = False,
) -> Prediction:
    """Cross-entropy of softmax(rows @ prototypes.T / temperature) against balanced assignments.

    rows: (C * N, D), view-major; prototypes: (K, D); weights: (C * N,) fp32, what each row counts in the loss. Row n of
    view c learns from the sum of rows n of the targets whose numbers are teachers[c]: of one assignment, or of two for
    a local crop that is to agree with both global ones, since cross-entropy is linear in its target.
    """
    given = tuple(targets), tuple(teachers), temperature, choose, torch.is_grad_enabled()
    return Prediction(*_Prediction.apply(rows, prototypes, weights, *given))


class _Prediction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        prototypes: Tensor,
        weights: Tensor,
        targets: tuple[Assignments, ...],
        teachers: tuple[tuple[int, ...], ...],
        temperature: float,
        choose: bool,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        views, kind = len(teachers), factor_type(rows)
        left, right = rows.to(kind).unflatten(0, (views, -1)), prototypes.to(kind)
        by_view = weights.to(torch.promote_types(kind, torch.float32)).unflatten(0, (views, -1))
        gradients = _Gradients(left, right, by_view, 1 / temperature) if learns and any(ctx.needs_input_grad) else None
        per_row = by_view.new_empty(by_view.shape)
        choices = torch.empty(by_view.shape, dtype=torch.int64, device=rows.device) if choose else None
        with full_precision(rows.device):
            for part in row_blocks(by_view.shape[1], views * len(right), scores_at_once(rows.device)):
                logits = product(left[:, part].flatten(0, 1), right.T).unflatten(0, (views, -1))
                if choices is not None:
                    choices[:, part] = logits.argmax(dim=-1)
                of_logits = gradients.room(logits) if gradients else None
                here = [target[part] for target in targets]
                per_row[:, part] = cross_entropy(logits, here, teachers, 1 / temperature, of_logits)
                if gradients and of_logits is not None:
                    gradients.add(part, of_logits)
            loss = (per_row * by_view).sum()
        if gradients:
            ctx.gradients = gradients.finished()
        ctx.kinds = rows.dtype, prototypes.dtype
        ctx.mark_non_differentiable(per_row, *([choices] if choices is not None else []))
        return loss, per_row, choices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # Handed on, not kept: they are freed as soon as they are used.
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a prediction is given once; compute the loss again for another one")
        (of_rows, of_prototypes), ctx.gradients = ctx.gradients, None
        kind, kind_of_prototypes = ctx.kinds
        of_rows, of_prototypes = of_rows.mul_(of_loss).to(kind), of_prototypes.mul_(of_loss).to(kind_of_prototypes)
        return of_rows, of_prototypes, None, None, None, None, None, None


class _Gradients:
    """Of rows and prototypes, summed up in fp32 at least from those of blocks of logits.

    Row weights differ by orders of magnitude: they join where 16 bits hold them, as shares of the largest.
    """

    def __init__(self, rows: Tensor, prototypes: Tensor, weights: Tensor, scale: float) -> None:
        self.rows, self.prototypes = rows, prototypes  # (C, N, D), (K, D), in the type of the products
        self.largest = weights.amax().clamp(min=torch.finfo(weights.dtype).tiny) if weights.numel() else weights.sum()
        self.shares = weights / self.largest
        self.scale = self.largest * (scale / GAIN)
        self.of_rows = rows.new_empty(rows.shape, dtype=weights.dtype)
        self.of_prototypes = prototypes.new_zeros(prototypes.shape, dtype=weights.dtype)

    def room(self, logits: Tensor) -> Tensor:
        """Where the gradient of these logits goes: into their place, if it has their type."""
        kind = self.rows.dtype
        return logits if logits.dtype == kind else torch.empty_like(logits, dtype=kind)

    def add(self, part: slice, of_logits: Tensor) -> None:
        """of_logits: (C, n, K), of the rows `part`, but for their weights, temperature and GAIN."""
        shares, flat = self.shares[:, part, None], of_logits.flatten(0, 1)
        self.of_rows[:, part] = product(flat, self.prototypes).view(*shares.shape[:2], -1) * shares
        add_product_(self.of_prototypes, flat.T, (self.rows[:, part] * shares).to(self.rows.dtype).flatten(0, 1))

    def finished(self) -> tuple[Tensor, Tensor]:
        """(C * N, D) and (K, D)."""
        return self.of_rows.mul_(self.scale).flatten(0, 1), self.of_prototypes.mul_(self.scale)
