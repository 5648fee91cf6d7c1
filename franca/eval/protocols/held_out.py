"""The part of a training set on which settings are chosen, never the test set."""

import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.eval.errors import EvalError


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to learn from and to choose on, both rising.

    Rows are drawn at random, as evenly from all classes as their sizes allow.

    Args:
        labels: (N,) int64.
        share: of the rows that are held out, at most a half.

    Raises:
        EvalError: too few rows for the share.
    """
    shuffled = torch.randperm(len(labels), generator=generator("held out", seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    steps = (torch.arange(len(labels) + 1, dtype=torch.float64) * share).floor()
    held = steps.diff() > 0
    if not held.any():
        raise EvalError(f"holdout={share} of {len(labels)} training images holds none out: choose a larger share")
    return by_class[~held].sort().values, by_class[held].sort().values
