"""Nearest neighbours: an image gets the class of the training images it resembles (Wu et al., 2018, as in DINO).

Features are L2-normalised. Each of the k nearest training images votes for its class, with weight exp(cosine /
temperature) (soft) or 1 (majority; among classes with equally many votes the one with the lower number wins).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from franca.distributed import is_main
from franca.eval.context import DIVISORS, Context
from franca.eval.errors import EvalError
from franca.eval.neighbours import CHUNK, Rows, nearest
from franca.eval.neighbours_of_ranks import nearest_of_ranks
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.answers import Answers, answers_of, check_classes, labels_of
from franca.eval.result import Score
from franca.eval.store import ImageFeatures
from franca.eval.views import ResizeCrop

logger = logging.getLogger(__name__)

VOTINGS = ("soft", "majority")
FEATURES = ("cls", "cls+mean_patch", "mean_patch")
VOTERS = 1024  # test images whose votes are counted at once


@dataclass(frozen=True)
class KnnConfig:
    """How neighbours vote, and on what.

    Attributes:
        ks: numbers of neighbours; those above the number of training images are left out.
        temperature: of soft voting.
        voting: soft, majority or both.
        features: cls (class token), mean_patch, or both side by side.
        resize, size: shorter side of the images, and the central square that the model sees, in pixels.
    """

    ks: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    temperature: float = 0.07
    voting: list[str] = field(default_factory=lambda: list(VOTINGS))
    features: list[str] = field(default_factory=lambda: list(FEATURES[:2]))
    resize: int = 256
    size: int = 224

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or self.temperature <= 0:
            raise ValueError(f"ks={self.ks}, temperature={self.temperature}: all must be above 0")
        for name, chosen, known in (("voting", self.voting, VOTINGS), ("features", self.features, FEATURES)):
            if not chosen or not set(chosen) <= set(known):
                raise ValueError(f"{name}={chosen}: choose from {', '.join(known)}")


def run(context: Context, task: Task, config: KnnConfig) -> Iterator[Score]:
    """Scores of every slice, feature, voting and k, from the first process; all processes search."""
    assert task.train is not None
    check_classes(task.test, task.train)
    ks = fitting(config.ks, len(task.train.source))
    view = ResizeCrop(config.resize, config.size)
    train, test = context.store.images(task.train, view), context.store.images(task.test, view)
    labels, answers = labels_of(task.train, train), answers_of(task.test, test, task.train)
    ks = fitting(ks, len(labels))  # fewer where images can't be read
    slices = context.widths(min(train.cls.shape[-1], train.mean_patch.shape[-1]))
    for slice_name, features in context.track(list(product(slices, config.features)), "k-NN"):
        memory, queries = (_rows(context, side, features, slice_name) for side in (train, test))
        found = nearest_of_ranks(queries, memory, max(ks), context.device, cosine=True)
        if not is_main():
            continue  # its part of the search is all that it does
        for voting, k in product(config.voting, ks):
            predicted = vote(*found, labels, k, len(task.train.source.classes), voting, config.temperature, answers)
            yield Score(
                metric=answers.metric,
                value=answers.score(predicted),
                resolution=str(config.size),
                settings={"k": k, "voting": voting, "features": features},
                slice=slice_name,
            )


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    chunk: int = CHUNK,
    voting: str = "soft",
) -> dict[int, float]:
    """Share of test images whose class the k most similar training images name, in percent, by k.

    Args:
        train_features: (N, D). train_labels: (N,) int64, not negative.
        test_features: (M, D). test_labels: (M,) int64.
        chunk: training rows compared at once; changes memory, no result.
        voting: soft or majority.

    Raises:
        ValueError: k outside 1..N, no rows, or tensors that don't belong together.
    """
    _check(train_features, train_labels, test_features, test_labels)
    _check_ks(ks, len(train_labels))
    found = nearest(test_features, train_features, max(ks), cosine=True, chunk=chunk)
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    answers = Answers(test_labels)
    return {k: answers.score(vote(*found, train_labels, k, classes, voting, temperature, answers)) for k in ks}


def vote(
    cosines: Tensor,
    neighbours: Tensor,
    train_labels: Tensor,
    k: int,
    classes: int,
    voting: str,
    temperature: float,
    answers: Answers,
) -> Tensor:
    """Classes (M,) that the first k neighbours name.

    Args:
        cosines: (M, K), falling. neighbours: (M, K), rows of the training set; K >= k.
        train_labels: (N,).
        answers: of the test set; only its candidates are named.
    """
    predicted = []
    for cosine, neighbour in zip(cosines[:, :k].split(VOTERS), neighbours[:, :k].split(VOTERS), strict=True):
        weights = (cosine.double() / temperature).exp() if voting == "soft" else torch.ones_like(cosine).double()
        votes = weights.new_zeros(len(cosine), classes).scatter_add_(1, train_labels[neighbour], weights)
        predicted.append(answers.restrict(votes).argmax(dim=1))
    return torch.cat(predicted)


def knn_by_width(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, k: int = 20
) -> dict[int, float]:
    """`knn_accuracy` of the first d, d/2 … d/64 features, in percent by width (paper Fig. 4)."""
    return {
        width: knn_accuracy(train_features[:, :width], train_labels, test_features[:, :width], test_labels, (k,))[k]
        for width in slice_widths(train_features.shape[1])
    }


def slice_widths(dim: int) -> list[int]:
    """Widths of the nested slices, widest first: those of d, d/2 … d/64 that hold a feature."""
    return [dim // divisor for divisor in DIVISORS if dim >= divisor]


def _rows(context: Context, side: ImageFeatures, features: str, slice_name: str) -> Rows:
    """The asked features of the last block, their first part for a slice."""
    parts = [{"cls": side.cls, "mean_patch": side.mean_patch}[name][:, -1] for name in features.split("+")]
    return Rows(tuple(part[:, : context.widths(part.shape[1])[slice_name]] for part in parts))


def _check(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    train, test = train_features.shape, test_features.shape
    if len(train) != 2 or len(test) != 2 or train[1] != test[1]:
        raise ValueError(f"features of shape {tuple(train)} and {tuple(test)}: expected (N, D) and (M, D)")
    if len(train_labels) != train[0] or len(test_labels) != test[0] or not test[0]:
        raise ValueError(f"{train[0]} and {test[0]} rows with {len(train_labels)} and {len(test_labels)} labels")


def fitting(ks: Sequence[int], count: int) -> list[int]:
    """Those of the numbers of neighbours that so many training images allow. Raises EvalError for none."""
    kept = [k for k in ks if k <= count]
    _check_ks(kept or ks, count)
    if len(kept) < len(ks):
        left_out = ", ".join(str(k) for k in ks if k > count)
        logger.warning("there are only %d training images: k = %s is left out", count, left_out)
    return kept


def _check_ks(ks: Sequence[int], count: int) -> None:
    if not ks or min(ks) < 1 or max(ks) > count:
        raise EvalError(f"ks={list(ks)} with {count} training images: choose numbers from 1 to {count}")


PROTOCOL = Protocol(config=KnnConfig, run=run)
