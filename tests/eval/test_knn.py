"""k-NN against independent implementations, and at points where the answer is known."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from franca.eval.protocols.knn import knn_accuracy, knn_by_width, slice_widths


def random_problem(n: int, m: int, dim: int, classes: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator)
    labels = [torch.randint(classes, (rows,), generator=generator) for rows in (n, m)]
    features = [centres[label] + 1.5 * torch.randn(len(label), dim, generator=generator) for label in labels]
    return features[0], labels[0], features[1], labels[1]


@pytest.mark.parametrize("k", [1, 3, 20, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_scikit_learn(k, temperature) -> None:
    train, train_labels, test, test_labels = random_problem(60, 45, 8, 5)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.numpy(), train_labels.numpy())
    expected = 100 * reference.score(test.numpy(), test_labels.numpy())
    found = knn_accuracy(train, train_labels, test, test_labels, ks=(k,), temperature=temperature)
    assert found == {k: pytest.approx(expected)}


def test_equals_plain_loops() -> None:
    train, train_labels, test, test_labels = random_problem(12, 9, 4, 3, seed=4)
    right = 0
    for query, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        cosines = []
        for row, other in zip(train.tolist(), train_labels.tolist(), strict=True):
            inner = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((inner / math.hypot(*query) / math.hypot(*row), other))
        votes = [0.0] * 3
        for cosine, other in sorted(cosines, reverse=True)[:5]:
            votes[other] += math.exp(cosine / 0.07)
        right += votes.index(max(votes)) == label
    assert knn_accuracy(train, train_labels, test, test_labels, ks=(5,))[5] == pytest.approx(100 * right / 9)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_and_several_k_change_nothing(chunk) -> None:
    problem = random_problem(80, 50, 16, 4)
    apart = {k: knn_accuracy(*problem, ks=(k,))[k] for k in (1, 10, 80)}
    assert knn_accuracy(*problem, ks=(1, 10, 80), chunk=chunk) == apart


def test_one_hot_features_are_always_right() -> None:
    labels = torch.arange(50) % 10
    one_hot = torch.nn.functional.one_hot(labels).float()
    assert knn_accuracy(one_hot, labels, one_hot * 7, labels, ks=(1, 5)) == {1: 100.0, 5: 100.0}


def test_random_labels_give_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(2000, 8, generator=generator), torch.randn(2000, 8, generator=generator)
    labels = [torch.randint(10, (2000,), generator=generator) for _ in range(2)]
    assert knn_accuracy(train, labels[0], test, labels[1], ks=(20,))[20] == pytest.approx(10, abs=2.5)


def test_lengths_don_t_matter() -> None:
    train, train_labels, test, test_labels = random_problem(60, 40, 8, 4)
    stretched = train * torch.rand(60, 1).add(0.1), train_labels, test * 100, test_labels
    assert knn_accuracy(*stretched) == knn_accuracy(train, train_labels, test, test_labels)


def test_nearer_neighbours_weigh_more() -> None:
    """One near neighbour against two far ones: a low temperature follows the near one, a high one the majority."""
    train = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.5, -1.0]])
    problem = train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn_accuracy(*problem, ks=(3,), temperature=0.07) == {3: 100.0}
    assert knn_accuracy(*problem, ks=(3,), temperature=10.0) == {3: 0.0}


def test_slices_are_cut_first_and_normalised_then() -> None:
    """The first two features tell the classes apart, the others are large and random."""
    labels = torch.arange(40) % 2
    signal = torch.nn.functional.one_hot(labels).float()
    noise = 50 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    features = torch.cat([signal, noise], dim=1)
    scores = knn_by_width(features[:20], labels[:20], features[20:], labels[20:], k=3)
    assert list(scores) == [8, 4, 2, 1]
    assert scores[2] == 100.0
    assert scores[8] < 80


@pytest.mark.parametrize(
    ("dim", "widths"), [(192, [192, 96, 48, 24, 12, 6, 3]), (64, [64, 32, 16, 8, 4, 2, 1]), (20, [20, 10, 5, 2, 1])]
)
def test_widths_of_the_slices(dim, widths) -> None:
    assert slice_widths(dim) == widths


@pytest.mark.parametrize("ks", [(0,), (61,), (5, 61), ()])
def test_impossible_k_is_an_error(ks) -> None:
    with pytest.raises(ValueError, match="with 60 training images: choose numbers from 1 to 60"):
        knn_accuracy(*random_problem(60, 5, 4, 3), ks=ks)


def test_rows_and_labels_must_belong_together() -> None:
    train, train_labels, test, test_labels = random_problem(30, 5, 4, 3)
    with pytest.raises(ValueError, match="30 and 5 rows with 29 and 5 labels"):
        knn_accuracy(train, train_labels[1:], test, test_labels)
    with pytest.raises(ValueError, match=r"\(30, 4\) and \(5, 3\)"):
        knn_accuracy(train, train_labels, test[:, :3], test_labels)
