"""Over-clustering and position bias with a store: processes, batches, workers and unreadable images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca.eval.context import Context
from franca.eval.datasets import OpenedSplit
from franca.eval.protocol import Task
from franca.eval.protocols import overclustering, position_protocol
from franca.eval.protocols.overclustering import OverclusteringConfig
from franca.eval.protocols.position_protocol import PositionBiasConfig
from tests.distributed.ranks import on_ranks
from tests.eval.segmentation_case import Stripes, classes, make_context, random_features, stripes_task

CLUSTERS = OverclusteringConfig(clusters=[6], size=56, mask_size=28, components=3, iterations=10, seeds=[0, 1])
POSITION = PositionBiasConfig(size=56, clusters=4, iterations=5, seeds=[0])


class Noise:
    """Images of random colours."""

    labels, classes = None, ()

    def __len__(self) -> int:
        return 16

    def name(self, index: int) -> str:
        return f"noise {index}"

    def load(self, index: int) -> Tensor:
        return torch.randint(256, (3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))


def values(context: Context) -> list[float]:
    """All scores of both protocols."""
    noise = Task(None, OpenedSplit("noise", "test", Noise(), "noise"))
    found = [*overclustering.run(context, stripes_task(), CLUSTERS), *position_protocol.run(context, noise, POSITION)]
    return [score.value for score in found]


def all_values(folder: Path) -> list[float]:
    return values(make_context(folder, random_features))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch) -> None:
    monkeypatch.setattr("franca.eval.figures.can_draw", lambda: False)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path) -> None:
    expected = all_values(tmp_path / "one")
    first, second = on_ranks(2, tmp_path / "ranks", all_values, tmp_path / "two")
    assert len(expected) == 1 + 8
    assert first == pytest.approx(expected, abs=1e-6)  # features are rounded as their batch has it
    assert second == []


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (8, 1)])
def test_batches_and_workers_change_nothing(tmp_path, batch_size, workers) -> None:
    expected = all_values(tmp_path / "usual")
    other = make_context(tmp_path / "other", random_features, batch_size, workers)
    assert values(other) == pytest.approx(expected, abs=1e-4)


def test_masks_stay_with_their_images_where_some_cannot_be_read(tmp_path) -> None:
    """Features that tell the class score 100 % only with the masks of the same images."""
    task = Task(None, OpenedSplit("stripes", "test", Stripes(9, seed=1, broken=(1, 4, 5)), "broken"))
    (score,) = overclustering.run(make_context(tmp_path, classes), task, CLUSTERS)
    assert score.value == pytest.approx(100)
