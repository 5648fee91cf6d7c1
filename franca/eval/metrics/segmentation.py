"""Segmentation scores: all of them follow from the confusion matrix, which adds up over images.

Rows are the wanted classes (C), columns the predicted ones (P); pixels that are void in the mask are in neither.
"""

from typing import Literal

import torch
from torch import Tensor

from franca.eval.datasets import VOID
from franca.eval.errors import EvalError


def confusion_matrix(
    predicted: Tensor, wanted: Tensor, classes: int, void: int = VOID, predicted_classes: int | None = None
) -> Tensor:
    """Number of pixels of each wanted class that got each predicted one, (C, P) int64, on the tensors' device.

    Args:
        predicted: class numbers, any shape. What it holds at void pixels is never looked at.
        wanted: the same shape; ``void`` where nothing counts.
        classes: C; also P, unless ``predicted_classes`` says otherwise (clusters, for example).

    Raises:
        ValueError: shapes differ, or a number lies outside its range.
    """
    if predicted.shape != wanted.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and wanted {tuple(wanted.shape)} differ in shape")
    columns = classes if predicted_classes is None else predicted_classes
    counted = wanted != void
    rows, named = wanted[counted].long(), predicted[counted].long()
    for name, numbers, count in (("wanted", rows, classes), ("predicted", named, columns)):
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
            raise ValueError(f"{name} holds {int(numbers.min())} … {int(numbers.max())}, of {count} classes from 0")
    return torch.bincount(rows * columns + named, minlength=classes * columns).view(classes, columns)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, (C,) float64 in [0, 1]; NaN where no pixel has or is given the class.

    Columns past the first C stand for no class: their pixels are missed ones of their row.
    """
    classes = _wanted_classes(confusion)
    return overlaps(confusion)[:, :classes].diagonal().clone()


def mean_iou(confusion: Tensor, absent: Literal["skip", "zero"] = "skip") -> float:
    """Mean of `iou` over the classes, in [0, 1].

    Args:
        absent: what becomes of a class that is in no mask and in no prediction: left out of the mean, or 0 in it, as
            open-hummingbird-eval has it.

    Raises ValueError when no pixel was counted.
    """
    if not confusion.sum():
        raise ValueError("no pixel was counted: every one is void")
    of_class = iou(confusion)
    return float(of_class.nanmean() if absent == "skip" else of_class.nan_to_num(0.0).mean())


def overlaps(confusion: Tensor) -> Tensor:
    """Intersection over union of every wanted with every predicted class, (C, P) float64; NaN where both are empty."""
    inside = confusion.double()
    return inside / (inside.sum(dim=1, keepdim=True) + inside.sum(dim=0, keepdim=True) - inside)


def hungarian(confusion: Tensor) -> Tensor:
    """The wanted class that each predicted one stands for, (P,) int64, one to one, with the largest sum of IoU.

    Where P is larger than C, the rest are -1. Needs scipy, raises EvalError without it.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise EvalError("matching classes needs scipy: pip install 'franca[eval]'") from None
    row, column = linear_sum_assignment(overlaps(confusion).nan_to_num(0.0).cpu().numpy(), maximize=True)
    stands_for = torch.full((confusion.shape[1],), -1, dtype=torch.int64)
    stands_for[torch.from_numpy(column)] = torch.from_numpy(row)
    return stands_for.to(confusion.device)


def renamed(confusion: Tensor, stands_for: Tensor) -> Tensor:
    """The confusion matrix after each predicted class is given its wanted one, (C, C + 1); the last column is none.

    Args:
        stands_for: (P,) int64, a wanted class or -1 for each predicted one; several may share one.
    """
    classes = len(confusion)
    column = torch.where(stands_for < 0, classes, stands_for)
    return confusion.new_zeros(classes, classes + 1).index_add_(1, column, confusion)


def _wanted_classes(confusion: Tensor) -> int:
    if confusion.dim() != 2 or confusion.shape[1] < confusion.shape[0]:
        raise ValueError(f"confusion matrix of shape {tuple(confusion.shape)}: rename the predicted classes first")
    return confusion.shape[0]
