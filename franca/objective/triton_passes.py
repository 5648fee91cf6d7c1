"""Passes over stored logits as Triton kernels: the functions of `franca.objective.chunked`, for accelerators.

Bytes of device memory per logit that each is to move, values being stored in 2 bytes and the student's logits in 4
(counted, not measured; partial results add 2 %):

    store              read 4, and 4 again for what of a row the cache has lost; write 2
    column_logsumexp   read 2
    column_sums        read 2 for the sums of rows, and 2 for those of columns
    cross_entropy      read 4 + 2, and 6 again for what of a row the cache has lost; write 2 (the gradient)

With three rounds of Sinkhorn a pair of logits takes 6 + 2 + 2 * 4 + 8 = 24 bytes, 34 where the cache holds nothing; the
products before and after write 4 + 4 and read 2 * 2 more. Rows of 2^16 prototypes, one on each multiprocessor, fit a
cache of 50 MB. Grids, tiles and loops depend on shapes alone, and nothing waits for a value.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from franca.objective import triton_kernels as kernels
from franca.objective.triton_cross_entropy import cross_entropy_kernel

if TYPE_CHECKING:
    from franca.objective.assignments import Assignments, Scores

# Tiles in entries, programs in warps of 32 threads (16 of 64 are the most that some devices take). Large programs are
# few at a time, which leaves each row more of the cache for its second reading; a thread reads 8 entries at once.
STORED_ROW, STORED_ROW_WARPS = 16384, 16  # in registers: 1 number per entry
ROW, ROW_WARPS = 4096, 16  # 5 numbers per entry, 8 with two teachers
ROWS, COLUMNS, WARPS = 4, 512, 4  # tiles of passes down the columns
PART = 128  # rows to a partial result: enough programs for a narrow level, and few results
GROUP, GROUP_COLUMNS, GROUP_WARPS = 4, 1024, 8  # rows that share a reading of the potentials
FEW = 1024  # rows; fewer go one by one, or there were too few programs


def store(logits: Tensor, values: Tensor, peaks: Tensor, valid: Tensor | None) -> None:
    """Write logits (n, K) as values and peaks."""
    rows, width = logits.shape
    if not rows:
        return
    with _on(logits.device):
        kernels.store_kernel[(rows,)](
            logits,
            values,
            peaks,
            *_pointer(valid, peaks),
            rows,
            width,
            torch.finfo(values.dtype).min,
            COLUMNS=STORED_ROW,
            num_warps=STORED_ROW_WARPS,
        )


def column_logsumexp(scores: "Scores", scale: Tensor) -> Tensor:
    """log sum over rows of exp(logits * scale), (K,); -inf without a row that takes part."""
    rows, width = scores.values.shape
    partial = scale.new_empty(_count(rows, PART), width)
    if not rows:
        return partial.logsumexp(dim=0)
    with _on(scale.device):
        kernels.column_logsumexp_kernel[_count(width, COLUMNS), len(partial)](
            scores.values.contiguous(),
            scores.peaks,
            *_pointer(scores.valid, scores.peaks),
            scale,
            partial,
            rows,
            width,
            PART=PART,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
    return partial.logsumexp(dim=0)


def column_sums(assignments: "Assignments") -> Tensor:
    """Mass of every prototype over the rows, (K,): the column sums of the assignments."""
    values, potentials, scale = assignments.scores.values.contiguous(), assignments.potentials, assignments.scale
    rows, width = values.shape
    partial = scale.new_empty(_count(rows, PART), width)
    if not rows:
        return partial.sum(dim=0)
    peaks, totals = scale.new_empty(rows), scale.new_empty(rows)
    group = GROUP if rows >= FEW else 1
    with _on(scale.device):
        kernels.row_statistics_kernel[(_count(rows, group),)](
            values,
            potentials,
            scale,
            peaks,
            totals,
            rows,
            width,
            ROWS=group,
            COLUMNS=GROUP_COLUMNS * GROUP // group,
            num_warps=GROUP_WARPS,
        )
        kernels.column_sums_kernel[_count(width, COLUMNS), len(partial)](
            values,
            potentials,
            scale,
            peaks,
            totals,
            *_pointer(assignments.scores.valid, peaks),
            partial,
            rows,
            width,
            PART=PART,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
    return partial.sum(dim=0)


def cross_entropy(
    logits: Tensor,
    targets: Sequence["Assignments"],
    teachers: Sequence[tuple[int, ...]],
    scale: float,
    gradient: Tensor | None,
) -> Tensor:
    """As `chunked.cross_entropy`, for one or two targets: (C, N, K) -> (C, N). gradient: contiguous, may be logits."""
    views, rows, width = logits.shape
    loss = targets[0].potentials.new_empty(views, rows)
    learners = [sum(1 << view for view, key in enumerate(teachers) if number in key) for number in range(2)]
    if not rows:
        return loss
    with _on(loss.device):
        cross_entropy_kernel[(views * rows,)](
            logits.contiguous(),
            loss if gradient is None else gradient,
            loss,
            *_target(targets[0], loss),
            *_target(targets[-1], loss),
            rows,
            width,
            views,
            scale,
            LEARN_FROM_A=learners[0],
            LEARN_FROM_B=learners[1],
            GRADIENT=gradient is not None,
            COLUMNS=ROW,
            num_warps=ROW_WARPS,
        )
    return loss


def _target(assignments: "Assignments", some: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    scores = assignments.scores
    return scores.values.contiguous(), assignments.potentials, assignments.scale, *_pointer(scores.valid, some)


def _pointer(valid: Tensor | None, some: Tensor) -> tuple[Tensor, bool]:
    """What is read of `valid`, and whether it is; a kernel is given a tensor in any case."""
    return (some, False) if valid is None else (valid, True)


def _count(length: int, step: int) -> int:
    return -(-length // step)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels start on the current device, whatever their tensors lie on."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)
