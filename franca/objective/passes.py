"""What runs the passes over logits: Triton's kernels where Triton has a driver for the device, else plain PyTorch.

fp64, and what the kernels are not made for, is left to PyTorch. With TRITON_INTERPRET=1 in the environment Triton's
interpreter runs the kernels on the CPU, for tests.
"""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from franca.objective import chunked

if TYPE_CHECKING:
    from franca.objective.assignments import Assignments, Scores

MOST_TARGETS, MOST_VIEWS = 2, 62  # that the kernel of the cross-entropy is made for


def store(logits: Tensor, values: Tensor, peaks: Tensor, valid: Tensor | None) -> None:
    """Write logits (n, K) as values (n, K), what a row lacks to its largest, and peaks (n,), these.

    valid: (n,) bool; rows that take no part become zeros, whatever they hold. values may be logits; these are lost.
    """
    _passes(logits).store(logits, values, peaks, valid)


def column_logsumexp(scores: "Scores", scale: Tensor) -> Tensor:
    """log sum over rows of exp(logits * scale), (K,); -inf without a row that takes part."""
    return _passes(scores.values).column_logsumexp(scores, scale)


def column_sums(assignments: "Assignments") -> Tensor:
    """Mass of every prototype over the rows, (K,): the column sums of the assignments."""
    return _passes(assignments.scores.values).column_sums(assignments)


def cross_entropy(
    logits: Tensor,
    targets: Sequence["Assignments"],
    teachers: Sequence[tuple[int, ...]],
    scale: float,
    gradient: Tensor | None,
) -> Tensor:
    """-sum_k q_nk log softmax_k(logits * scale), (C, N, K) -> (C, N), and its gradient: see `chunked.cross_entropy`."""
    made_for = len(targets) <= MOST_TARGETS and len(teachers) <= MOST_VIEWS
    passes = _passes(logits) if made_for else chunked
    return passes.cross_entropy(logits, targets, teachers, scale, gradient)


def _passes(tensor: Tensor) -> ModuleType:
    return chunked if tensor.dtype == torch.float64 else _of_device(tensor.device.type)


@cache
def _of_device(kind: str) -> ModuleType:
    """Tried once, on one number: Triton needs a C compiler and a device that is new enough, too."""
    if find_spec("triton") is None:
        return chunked
    try:
        if not _has_driver(kind):
            return chunked
        kernels = import_module("franca.objective.triton_passes")
        _try_out(kernels, torch.ones(1, 1, device=kind))
    except Exception as error:  # a compiler, headers, the device: whatever Triton misses
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"Triton doesn't work on {kind} ({reason}): the objective is computed without it", stacklevel=2)
        return chunked
    return kernels


def _try_out(kernels: ModuleType, one: Tensor) -> None:
    """Run each of them on one number, (1, 1)."""
    from franca.objective.assignments import Assignments, Scores  # which import this file

    scores = Scores(torch.zeros_like(one), one[0])
    assignments = Assignments(scores, one[0], one[0])
    kernels.store(one.clone(), torch.zeros_like(one), torch.zeros_like(one[0]), None)
    kernels.column_logsumexp(scores, one[0])
    kernels.column_sums(assignments)
    kernels.cross_entropy(one[None], [assignments], [(0,)], 1.0, torch.empty_like(one[None]))


def _has_driver(kind: str) -> bool:
    """Raises whatever Triton raises when it can't build what its driver needs."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if kind == "cpu":
        return False
    try:
        device: torch.device = import_module("triton.runtime").driver.active.get_active_torch_device()
    except (ImportError, RuntimeError):  # no driver, or several
        return False
    return device.type == kind
