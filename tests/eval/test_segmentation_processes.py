"""Segmentation protocols in two processes: the same scores, from the first one alone."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from franca.eval.errors import EvalError
from franca.eval.protocols import in_context, linear_segmentation, waiting
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


def augmented_scores(folder: Path) -> list[float]:
    """A collective for each seed, while the search of the one before is the first process's alone."""
    waiting.SECONDS = 0.001
    config = replace(IN_CONTEXT, memory=0, augment=True)
    found = in_context.run(make_context(folder, random_features), stripes_task(), config)
    return [value for score in found for value in score.values]


def wait_and_fail(folder: Path) -> str:
    """What becomes of a process when the first one works for a while, and when it fails."""
    waiting.SECONDS = 0.01
    waiting.while_others_wait(lambda: (time.sleep(0.2), (folder / "done").touch())[1])
    assert (folder / "done").exists()
    try:
        waiting.while_others_wait(lambda: (folder / "missing").unlink())
    except (EvalError, FileNotFoundError) as error:
        return type(error).__name__
    return ""


@pytest.mark.slow
def test_seeds_of_two_processes_are_those_of_one(tmp_path) -> None:
    expected = augmented_scores(tmp_path / "one")
    first, second = on_ranks(2, tmp_path / "ranks", augmented_scores, tmp_path / "two")
    assert len(expected) == 2 * 2
    assert first == pytest.approx(expected, abs=1e-9)
    assert second == []


@pytest.mark.slow
def test_processes_wait_for_the_first_one_and_end_with_it(tmp_path) -> None:
    assert on_ranks(2, tmp_path / "ranks", wait_and_fail, tmp_path) == ["FileNotFoundError", "EvalError"]
