"""Segmentation protocols in two processes: the same scores, from the first one alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from franca.eval.protocols import in_context, linear_segmentation
from franca.eval.protocols.in_context import InContextConfig
from franca.eval.protocols.linear_segmentation import LinearSegmentationConfig
from tests.distributed.ranks import on_ranks
from tests.eval.segmentation_case import make_context, random_features, stripes_task

IN_CONTEXT = InContextConfig(size=56, neighbours=5, memory=60, seeds=[0, 1])
LINEAR = LinearSegmentationConfig(crop=56, epochs=2, batch=4, whole=True)


def all_scores(folder: Path) -> list[float]:
    """Of both protocols; nothing in the processes that say nothing."""
    context, task = make_context(folder, random_features), stripes_task()
    found = [*in_context.run(context, task, IN_CONTEXT), *linear_segmentation.run(context, task, LINEAR)]
    found += linear_segmentation.run(context, task, replace(LINEAR, whole=False, crop=28))
    return [value for score in found for value in score.values]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path) -> None:
    expected = all_scores(tmp_path / "one")
    first, second = on_ranks(2, tmp_path / "ranks", all_scores, tmp_path / "two")
    assert len(expected) == 2 * 2 + 1 + 1
    assert first == pytest.approx(expected, abs=1e-9)
    assert second == []
