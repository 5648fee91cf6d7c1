"""Nearest neighbours: an image gets the class of the training images it resembles (Wu et al., 2018, as in DINO)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

DIVISORS = (1, 2, 4, 8, 16, 32, 64)


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, float]:
    """Share of test images whose class the k most similar training images name, in percent, by k.

    Features are L2-normalised; each of the k neighbours votes for its class with weight exp(cosine / temperature).

    Args:
        train_features: (N, D). train_labels: (N,) int64, not negative.
        test_features: (M, D). test_labels: (M,) int64.
        chunk: test rows compared at once; changes memory, no result.

    Raises:
        ValueError: k outside 1..N, no rows, or tensors that don't belong together.
    """
    _check(train_features, train_labels, test_features, test_labels, ks)
    memory = normalize(train_features.float(), dim=1).T
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    correct = dict.fromkeys(ks, 0)
    for rows, wanted in zip(test_features.split(chunk), test_labels.split(chunk), strict=True):
        cosine, neighbour = (normalize(rows.float(), dim=1) @ memory).topk(max(ks), dim=1)
        weights, named = (cosine / temperature).exp(), train_labels[neighbour]
        for k in ks:
            votes = weights.new_zeros(len(rows), classes).scatter_add_(1, named[:, :k], weights[:, :k])
            correct[k] += int((votes.argmax(dim=1) == wanted).sum())
    return {k: 100 * count / len(test_labels) for k, count in correct.items()}


def knn_by_width(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, k: int = 20
) -> dict[int, float]:
    """`knn_accuracy` of the first d, d/2 … d/64 features, in percent by width (paper Fig. 4)."""
    return {
        width: knn_accuracy(train_features[:, :width], train_labels, test_features[:, :width], test_labels, (k,))[k]
        for width in slice_widths(train_features.shape[1])
    }


def slice_widths(dim: int) -> list[int]:
    """Widths of the nested slices, widest first: those of d, d/2 … d/64 that are whole features."""
    return [dim // divisor for divisor in DIVISORS if dim >= divisor]


def _check(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, ks: Sequence[int]
) -> None:
    train, test = train_features.shape, test_features.shape
    if len(train) != 2 or len(test) != 2 or train[1] != test[1]:
        raise ValueError(f"features of shape {tuple(train)} and {tuple(test)}: expected (N, D) and (M, D)")
    if len(train_labels) != train[0] or len(test_labels) != test[0] or not test[0]:
        raise ValueError(f"{train[0]} and {test[0]} rows with {len(train_labels)} and {len(test_labels)} labels")
    if not ks or min(ks) < 1 or max(ks) > train[0]:
        raise ValueError(f"k={list(ks)} with {train[0]} training images: choose numbers from 1 to {train[0]}")
