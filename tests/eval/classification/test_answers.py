"""Scores of predictions against scikit-learn and against cases worked by hand."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from franca.eval.datasets import OpenedSplit
from franca.eval.datasets.listed import ListedImages
from franca.eval.errors import EvalError
from franca.eval.protocols.answers import Answers, answers_of
from franca.eval.protocols.held_out import hold_out
from franca.eval.store import ImageFeatures


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_shares_equal_scikit_learn(classes) -> None:
    random = torch.Generator().manual_seed(classes)
    labels, predicted = (torch.randint(classes, (100,), generator=random) for _ in range(2))
    assert Answers(labels).score(predicted) == pytest.approx(100 * accuracy_score(labels, predicted))
    wanted = 100 * float((predicted[labels == 0] == 0).float().mean())
    assert Answers(torch.zeros(5), mean_per_class=True).metric == "mean_per_class"
    there = torch.isin(predicted, labels)  # scikit-learn warns of a predicted class that has no image
    mean = Answers(labels[there], mean_per_class=True).score(predicted[there])
    assert mean == pytest.approx(100 * balanced_accuracy_score(labels[there], predicted[there]))
    assert Answers(labels[labels == 0], mean_per_class=True).score(predicted[labels == 0]) == pytest.approx(wanted)


def test_one_of_several_labels_is_enough() -> None:
    answers = Answers(torch.tensor([0, 1, 2, 3]), label_sets=[[0], [1, 2], [], [4, 5]])
    assert answers.score(torch.tensor([0, 2, 2, 3])) == pytest.approx(200 / 3)  # the image without labels is left out


def test_only_candidates_are_named() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0, 4.0]])
    assert Answers(torch.tensor([2]), candidates=torch.tensor([1, 2])).restrict(scores).argmax(1).tolist() == [2]
    assert Answers(torch.tensor([2])).restrict(scores).argmax(1).tolist() == [0]


def split(classes: list[str], **options) -> OpenedSplit:
    source = ListedImages(Path("/nowhere"), ["a", "b", "c"], [0, 1, 0], classes, **options)
    return OpenedSplit("made_up", "val", source, "")


def without_labels() -> OpenedSplit:
    found = split(["x", "y"])
    found.source.labels = None
    return found


def features(index: list[int], labels: torch.Tensor | None) -> ImageFeatures:
    return ImageFeatures(torch.zeros(len(index), 1, 2), torch.zeros(len(index), 1, 2), torch.tensor(index), labels)


def test_answers_are_those_of_the_readable_images() -> None:
    test = split(["x", "y"], candidates=[0], label_sets=[[0], [1, 0], [1]])
    found = answers_of(test, features([0, 2], torch.tensor([0, 0])), split(["x", "y"]))
    assert found.label_sets == [[0], [1]]
    assert found.candidates.tolist() == [0]


def test_other_classes_and_missing_labels_are_refused() -> None:
    readable = features([0, 1, 2], torch.tensor([0, 1, 0]))
    with pytest.raises(EvalError, match="only in one of them: y, z"):
        answers_of(split(["x", "z"]), readable, split(["x", "y"]))
    with pytest.raises(EvalError, match="same order"):
        answers_of(split(["y", "x"]), readable, split(["x", "y"]))
    with pytest.raises(EvalError, match="has no labels"):
        answers_of(without_labels(), features([0], None), split(["x", "y"]))
    with pytest.raises(EvalError, match="has no labels"):
        answers_of(split(["x", "y"]), readable, without_labels())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_held_out_rows_come_from_all_classes(share) -> None:
    labels = torch.arange(400) % 8
    learn, held = hold_out(labels, share, seed=3)
    assert torch.equal(torch.cat([learn, held]).sort().values, torch.arange(400))
    counts = labels[held].bincount(minlength=8)
    assert ((counts - 50 * share).abs() <= 1).all()
    assert len(held) == int(400 * share)
    assert not torch.equal(held, hold_out(labels, share, seed=4)[1])
    assert torch.equal(held, hold_out(labels, share, seed=3)[1])


def test_nothing_to_hold_out_is_an_error() -> None:
    with pytest.raises(EvalError, match="holds none out"):
        hold_out(torch.zeros(5, dtype=torch.int64), 0.1, 0)
