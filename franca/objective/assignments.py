"""What is stored of the teacher's answer: logits in few bytes and one potential per prototype, never assignments.

N rows (crops or patches), K prototypes, D bottleneck width. With L = logits / T the assignments of Sinkhorn-Knopp are
q = exp(L + u + v). Its last step makes rows sum to 1, so q is the softmax over prototypes of L + u: v need not be kept.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from franca.objective.blocks import row_blocks, scores_at_once
from franca.objective.passes import store
from franca.objective.precision import STORED, factor_type, full_precision, is_mixed, product


@dataclass(frozen=True)
class Scores:
    """Logits (N, K) as values + peaks: what a row lacks to its largest logit, which needs fewest bits where it counts.

    values: fp16 under autocast, else the type of the computation. A row that takes no part holds zeros.
    """

    values: Tensor  # (N, K), at most 0
    peaks: Tensor  # (N,), fp32 at least
    valid: Tensor | None = None  # (N,) bool; None: all rows take part

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor, prototypes: Tensor, valid: Tensor | None = None) -> Self:
        """Scores of rows (N, D) against prototypes (K, D)."""
        mixed, kind = is_mixed(rows.device), factor_type(rows)
        with full_precision(rows.device):
            left, right = rows.to(kind), prototypes.to(kind).T
            shape, full = (len(rows), right.shape[1]), torch.promote_types(kind, torch.float32)
            values = rows.new_empty(shape, dtype=STORED if mixed else full)
            peaks = rows.new_empty(shape[0], dtype=full)
            for part in row_blocks(*shape, scores_at_once(rows.device)):
                logits = product(left[part], right)
                store(logits, values[part], peaks[part], None if valid is None else valid[part])
        return cls(values, peaks, valid)

    @classmethod
    @torch.no_grad()
    def of_logits(cls, logits: Tensor, valid: Tensor | None = None) -> Self:
        """Of given logits (N, K), in fp32 at least."""
        kind = torch.promote_types(logits.dtype, torch.float32)
        values = logits.to(kind, copy=True, memory_format=torch.contiguous_format)
        peaks = values.new_empty(len(values))
        store(values, values, peaks, valid)
        return cls(values, peaks, valid)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.values[rows], self.peaks[rows], None if self.valid is None else self.valid[rows])


@dataclass(frozen=True)
class Assignments:
    """Balanced assignments q (N, K) in the form that is stored; rows sum to 1, those that take no part are zero."""

    scores: Scores
    potentials: Tensor  # (K,): u
    scale: Tensor  # (1,): 1 / T

    def __len__(self) -> int:
        return len(self.scores.values)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.scores[rows], self.potentials, self.scale)

    def dense(self) -> Tensor:
        """q written out, (N, K), fp32 at least."""
        shifted = self.scores.values.to(self.scale.dtype).mul(self.scale).add_(self.potentials)
        assignments = shifted.softmax(dim=1)
        return assignments if self.scores.valid is None else assignments.masked_fill_(~self.scores.valid[:, None], 0.0)
