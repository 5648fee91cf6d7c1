"""k-NN in two processes: each searches for its part of the test images; the first one has the scores of one alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from franca.eval import neighbours_of_ranks
from franca.eval.context import Context
from franca.eval.neighbours import Rows
from franca.eval.protocol import Task
from franca.eval.protocols import knn
from tests.distributed.ranks import on_ranks
from tests.eval.classification.conftest import PlantedStore, split_of

CPU = torch.device("cpu")
TRAIN, TEST, CLASSES = 40, 21, 4  # an odd number: one process has a query less


def rows(count: int, seed: int) -> torch.Tensor:
    """Of few values, so that many products are equal."""
    return torch.randint(-2, 3, (count, 6), generator=torch.Generator().manual_seed(seed)).half()


def outcome(folder: Path) -> dict[str, Any]:
    """Neighbours of all queries and of some, scores, and how many queries this process has compared for each."""
    plain, compared = neighbours_of_ranks.nearest, []
    neighbours_of_ranks.nearest = lambda queries, *given: compared.append(len(queries)) or plain(queries, *given)
    asked, memory = Rows((rows(TEST, 1),)), Rows((rows(TRAIN, 0),))
    some = Rows(asked.parts, chosen=torch.arange(0, TEST, 2))
    found = [neighbours_of_ranks.nearest_of_ranks(each, memory, 5, CPU, cosine=True) for each in (asked, some)]
    features = {
        name: tuple(rows(count, seed)[:, None] for seed in (first, first + 1))
        for name, count, first in (("train", TRAIN, 0), ("test", TEST, 2))
    }
    splits = [
        split_of(name, [n % CLASSES for n in range(count)], CLASSES)
        for name, count in (("train", TRAIN), ("test", TEST))
    ]
    engine = SimpleNamespace(backbone=None, device=CPU, autocast=None)
    context = Context(engine, PlantedStore(features, {}), folder, slices=(1, 2))
    scores = [score.value for score in knn.run(context, Task(*splits), knn.KnnConfig(ks=[1, 5]))]
    neighbours_of_ranks.nearest = plain
    return {"found": [list(each) for each in found], "scores": scores, "compared": compared}


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path) -> None:
    expected, ranks = outcome(tmp_path), on_ranks(2, tmp_path / "ranks", outcome, tmp_path)
    assert expected["compared"] == [21, 11] + 4 * [21]
    assert len(expected["scores"]) == 2 * 2 * 2 * 2
    for each in ranks:
        assert each["compared"] == [11, 6] + 4 * [11]
        for mine, wanted in zip(each["found"], expected["found"], strict=True):
            assert all(torch.equal(*pair) for pair in zip(mine, wanted, strict=True))
    assert [each["scores"] for each in ranks] == [expected["scores"], []]
