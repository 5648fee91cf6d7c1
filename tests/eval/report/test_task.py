"""The question asked of a model fits the images there are."""

import pytest
import torch

from franca.data.loader import DataConfig
from franca.eval.features import extract_features
from franca.eval.report.comparison import classes_of, compare
from franca.eval.report.task import PORTRAYED, choose_task, neighbours


def test_photographs_are_found_from_their_other_half() -> None:
    config = DataConfig(source="photographs", path="train")
    task = choose_task(config, config.build_source(), 28)
    names = [source.name(0).split("/")[1] for source in (task.memory.source, task.queries.source)]
    assert names == ["left", "right"]
    assert task.classes == len(task.memory.source.classes)
    assert task.chance == pytest.approx(100 / task.classes)
    shown = [task.queries.source.name(number).split("/")[0] for number in task.portrayed]
    assert shown == list(PORTRAYED)


def test_class_folders_are_split(make_source) -> None:
    source = make_source(50, classes=5)
    task = choose_task(DataConfig(), source, 28)
    indices = task.memory.source.indices, task.queries.source.indices
    assert set(indices[0]).isdisjoint(indices[1])
    assert (task.classes, task.k, task.chance) == (5, 5, 20.0)
    assert all(0 <= number < len(task.queries.source) for number in task.portrayed)


def test_without_labels_every_image_is_a_class(make_source, model) -> None:
    """The halves of an image are alike here, and unlike those of the others: a model that sees colour finds them."""
    source = make_source(12, broken=(3,))
    colours = torch.randint(256, (12, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source.images = [None if number == 3 else colour.expand(3, 40, 60) for number, colour in enumerate(colours)]
    task = choose_task(DataConfig(), source, 28)
    assert (task.k, task.classes) == (1, 12)
    memory = extract_features(model, task.memory)
    assert classes_of(memory).tolist() == [number for number in range(12) if number != 3]
    comparison = compare(model, model, task, DataConfig())
    assert comparison.trained == comparison.untrained
    assert comparison.trained["class token"][16] == 100.0
    assert comparison.pixels == 100.0
    assert (comparison.queries, comparison.memory) == (11, 11)


def test_folders_of_one_image_each_are_no_classes(make_source) -> None:
    source = make_source(6, classes=6)
    task = choose_task(DataConfig(), source, 28)
    assert task.goal.startswith("other half")
    assert task.memory.labels is None
    assert source.labels == list(range(6))


def test_large_sources_are_sampled(make_source) -> None:
    for classes in (0, 4):
        task = choose_task(DataConfig(), make_source(100, classes=classes), 28, limit=10)
        assert (len(task.memory.source), len(task.queries.source)) == (10, 10)


@pytest.mark.parametrize(
    ("labels", "k"), [([0] * 30 + [1] * 25, 20), ([0] * 30 + [1] * 4, 4), ([0, 1, 2], 1), ([5] * 7, 7)]
)
def test_k_is_never_more_than_the_smallest_class(labels, k) -> None:
    assert neighbours(labels) == k


def test_a_folder_of_one_image_still_has_portraits(make_source) -> None:
    assert choose_task(DataConfig(), make_source(1), 28).portrayed == [0]
    assert choose_task(DataConfig(), make_source(4), 28).portrayed == [0, 1, 2, 3]
