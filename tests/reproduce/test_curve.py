"""A run's lines become few points, each once its window is whole."""

import pytest

from franca.reproduce.curve import LOSSES, MOST_POINTS, curve_of, minutes_of, window_of


def line(step: int, value: float | None = None) -> dict[str, float]:
    losses = {} if value is None else dict.fromkeys(LOSSES, value)
    return {"step": step, "images": 4 * step, "images_per_second": 2.0, **losses}


@pytest.mark.parametrize(("steps", "every", "window"), [(260, 10, 20), (1800, 10, 90), (60, 10, 10), (5, 10, 10)])
def test_a_window_is_whole_lines_and_there_are_few(steps: int, every: int, window: int) -> None:
    assert window_of(steps, every) == window
    assert steps / window <= MOST_POINTS


def test_a_point_is_the_mean_of_its_window_and_comes_when_it_is_whole() -> None:
    lines = [line(step, float(step)) for step in (10, 20, 30, 40, 50)]
    reached = [curve_of(lines[:count], 50, 10, 20)["loss"] for count in (2, 3, 4, 5)]
    assert reached[0] == reached[1] == {20: 15.0}
    assert reached[2] == {20: 15.0, 40: 35.0}
    assert reached[3] == {20: 15.0, 40: 35.0, 50: 50.0}, "the last window is shorter"


def test_the_line_of_a_later_step_ends_a_window_whose_last_line_is_lost() -> None:
    curve = curve_of([line(10, 1.0), line(30, 3.0)], 40, 10, 20)
    assert curve["patch"] == {20: 1.0}


def test_steps_that_were_not_finite_are_left_out_and_a_window_of_them_is_none() -> None:
    lines = [line(10, 1.0), line(20), line(30), line(40)]
    assert curve_of(lines, 40, 10, 20)["loss"] == {20: 1.0, 40: None}


def test_scores_keep_their_steps_before_the_first_one_too() -> None:
    lines = [{"step": 0, "knn_cls@20": 30.0}, line(10, 1.0), {"step": 10, "knn_cls@20": 40.0, "verdict": "healthy"}]
    assert curve_of(lines, 10, 10, 10)["knn_cls@20"] == {0: 30.0, 10: 40.0}


def test_minutes_are_those_of_the_steps() -> None:
    assert minutes_of([line(30), {"step": 30, "knn_cls@20": 1.0}, line(60)]) == pytest.approx(60 * 4 / 2 / 60)
