"""Which class is right for each image of a test set, and the score of what was predicted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.store import ImageFeatures


@dataclass(frozen=True)
class Answers:
    """What a test set asks for, one entry per readable image.

    ``label_sets`` stands where several classes may be right (ReaL): then one of them has to be predicted. Images whose
    list is empty don't count. ``candidates`` are the classes that a prediction may name (ImageNet-A and -R); None: all.
    """

    labels: Tensor  # (N,) int64
    candidates: Tensor | None = None  # (C,) int64
    label_sets: list[list[int]] | None = None
    mean_per_class: bool = False

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "mean_per_class" if self.mean_per_class else "top1"

    def restrict(self, scores: Tensor) -> Tensor:
        """Scores (B, classes), those of classes that are no candidates at -inf."""
        if self.candidates is None:
            return scores
        barred = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
        barred[self.candidates.to(scores.device)] = False
        return scores.masked_fill(barred, float("-inf"))

    def score(self, predicted: Tensor) -> float:
        """Share of right predictions (N,) in percent; with ``mean_per_class`` the mean of the classes' shares."""
        predicted = predicted.cpu()
        if self.label_sets is not None:
            pairs = zip(predicted.tolist(), self.label_sets, strict=True)
            counted = [named in right for named, right in pairs if right]
            return 100 * sum(counted) / max(1, len(counted))
        correct = predicted == self.labels
        if not self.mean_per_class:
            return 100 * int(correct.sum()) / len(correct)
        total, right = self.labels.bincount(), self.labels[correct].bincount(minlength=int(self.labels.max()) + 1)
        there = total > 0
        return 100 * float((right[there].double() / total[there]).mean())


def check_classes(test: OpenedSplit, train: OpenedSplit) -> None:
    """Raises EvalError, before any image is read, for data without labels or with other classes than ``train``."""
    for split in (train, test):
        if split.source.labels is None:
            raise EvalError(f"{split.name} {split.split} has no labels: classification needs them")
    known, asked = train.source.classes, test.source.classes
    if list(known) != list(asked):
        differing = sorted(set(known) ^ set(asked))
        raise EvalError(
            f"{test.name} {test.split} has {len(asked)} classes and {train.name} {train.split} {len(known)}, and they "
            f"must be the same in the same order; only in one of them: {', '.join(differing[:8])}"
        )


def answers_of(test: OpenedSplit, features: ImageFeatures, train: OpenedSplit) -> Answers:
    """What ``test`` asks of a classifier of the classes of ``train``. Raises EvalError as `check_classes`."""
    check_classes(test, train)
    assert features.labels is not None
    sets = test.label_sets
    return Answers(
        labels=features.labels,
        candidates=None if test.candidates is None else torch.tensor(test.candidates),
        label_sets=None if sets is None else [sets[number] for number in features.index.tolist()],
        mean_per_class=test.mean_per_class,
    )


def labels_of(train: OpenedSplit, features: ImageFeatures) -> Tensor:
    """(N,) int64. Raises EvalError for data without labels."""
    if features.labels is None:
        raise EvalError(f"{train.name} {train.split} has no labels: classification needs them")
    return features.labels
