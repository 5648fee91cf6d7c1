"""Segmentation scores against scikit-learn, against values worked by hand, and against the reference values."""

import json
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score
from torch import Tensor

from franca.eval.datasets import VOID
from franca.eval.errors import EvalError
from franca.eval.metrics.segmentation import confusion_matrix, hungarian, iou, mean_iou, overlaps, renamed


def random_maps(classes: int, seed: int = 0, agreement: float = 0.5) -> tuple[Tensor, Tensor]:
    """Predicted and wanted, (3, 20, 17): partly equal, a tenth of the wanted pixels void."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 20, 17)
    wanted = torch.randint(classes, shape, generator=generator)
    guess = torch.randint(classes, shape, generator=generator)
    predicted = torch.where(torch.rand(shape, generator=generator) < agreement, wanted, guess)
    void = torch.rand(shape, generator=generator) < 0.1
    return predicted.to(torch.uint8), torch.where(void, VOID, wanted).to(torch.uint8)


@pytest.mark.parametrize("classes", [2, 5, 21])
def test_scikit_learn_agrees(classes: int) -> None:
    predicted, wanted = random_maps(classes)
    counted = wanted != VOID
    confusion = confusion_matrix(predicted, wanted, classes)
    numbers = list(range(classes))
    expected = sklearn_confusion(wanted[counted], predicted[counted], labels=numbers)
    np.testing.assert_array_equal(confusion, expected)
    of_class = jaccard_score(wanted[counted], predicted[counted], labels=numbers, average=None)
    np.testing.assert_allclose(iou(confusion), of_class, rtol=1e-12)
    assert mean_iou(confusion) == pytest.approx(of_class.mean(), rel=1e-12)


def test_worked_by_hand() -> None:
    wanted = torch.tensor([[0, 0, 0, 1], [1, 1, VOID, VOID]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 3, 2, 99]])
    confusion = confusion_matrix(predicted, wanted, classes=5)
    assert confusion.tolist() == [[2, 1, 0, 0, 0], [0, 2, 0, 1, 0], [0] * 5, [0] * 5, [0] * 5]
    assert iou(confusion)[:2].tolist() == [2 / 3, 2 / 4]
    assert iou(confusion)[3] == 0, "predicted, but nowhere wanted"
    assert iou(confusion)[[2, 4]].isnan().all(), "what a void pixel was given does not count"
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert mean_iou(confusion, absent="zero") == pytest.approx((2 / 3 + 1 / 2 + 0) / 5)


def test_matrices_add_up_over_images() -> None:
    predicted, wanted = random_maps(4)
    parts = [confusion_matrix(one, other, 4) for one, other in zip(predicted, wanted, strict=True)]
    assert torch.equal(torch.stack(parts).sum(0), confusion_matrix(predicted, wanted, 4))


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted holds 0 … 7, of 5 classes"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 7]), 5)
    with pytest.raises(ValueError, match="predicted holds -1 … 1"):
        confusion_matrix(torch.tensor([-1, 1]), torch.tensor([0, 1]), 5)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 5)
    with pytest.raises(ValueError, match="every one is void"):
        mean_iou(confusion_matrix(torch.zeros(3), torch.full((3,), VOID), 5))
    with pytest.raises(ValueError, match="rename the predicted"):
        iou(torch.ones(3, 2))


def test_matching_finds_a_renaming() -> None:
    predicted, wanted = random_maps(6, agreement=0.8)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    plain = confusion_matrix(predicted, wanted, 6)
    shuffled = confusion_matrix(order[predicted.long()], wanted, 6)
    stands_for = hungarian(shuffled)
    assert torch.equal(order[stands_for], torch.arange(6))
    assert mean_iou(renamed(shuffled, stands_for)) == mean_iou(plain)


@pytest.mark.parametrize("predicted_classes", [3, 4, 6])
def test_matching_is_the_best_of_all_one_to_one_ones(predicted_classes: int) -> None:
    generator = torch.Generator().manual_seed(predicted_classes)
    confusion = torch.randint(50, (4, predicted_classes), generator=generator)
    quality = overlaps(confusion)
    stands_for = hungarian(confusion)
    taken = stands_for[stands_for >= 0]
    assert len(taken.unique()) == len(taken) == min(4, predicted_classes)
    found = sum(float(quality[row, column]) for column, row in enumerate(stands_for.tolist()) if row >= 0)
    wide, narrow = max(4, predicted_classes), min(4, predicted_classes)
    of_pair = quality if predicted_classes == wide else quality.T
    best = max(sum(float(of_pair[i, j]) for i, j in enumerate(order)) for order in permutations(range(wide), narrow))
    assert found == pytest.approx(best, rel=1e-12)


def test_an_unmatched_prediction_is_a_miss() -> None:
    confusion = torch.tensor([[6, 0, 3], [0, 5, 1]])
    after = renamed(confusion, torch.tensor([0, 1, -1]))
    assert after.tolist() == [[6, 0, 3], [0, 5, 1]]
    assert iou(after).tolist() == [6 / 9, 5 / 6]


def test_several_clusters_may_share_a_class() -> None:
    after = renamed(torch.tensor([[6, 0, 3], [0, 5, 1]]), torch.tensor([0, 1, 0]))
    assert after.tolist() == [[9, 0, 0], [1, 5, 0]]


@pytest.mark.parametrize("memory", ["unbounded", "bounded"])
@pytest.mark.parametrize("masks", ["plain", "swapped"])
def test_hummingbird(parity_dir, memory: str, masks: str) -> None:
    expected = json.loads((parity_dir / "hummingbird.json").read_text())
    metrics = expected["results"][memory]["metrics"]
    with np.load(parity_dir / "hummingbird.npz", allow_pickle=False) as file:
        predicted = torch.from_numpy(file[f"{memory}/prediction"])
        wanted = torch.from_numpy(file["val/labels" if masks == "plain" else "val/labels_swapped_1_2"])
        reference = torch.from_numpy(file[f"{memory}/confusion_gt_by_pred/{masks}"])
    confusion = confusion_matrix(predicted, wanted, expected["classes"])
    assert torch.equal(confusion, reference)
    assert mean_iou(confusion, "zero") == pytest.approx(metrics[f"{masks}/identity"]["miou"], abs=1e-9)
    matched = renamed(confusion, hungarian(confusion))
    assert mean_iou(matched, "zero") == pytest.approx(metrics[f"{masks}/hungarian_default"]["miou"], abs=1e-9)


def test_without_scipy_matching_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(EvalError, match=r"franca\[eval\]"):
        hungarian(torch.eye(2))
