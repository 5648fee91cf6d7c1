"""Which runs pass: a genuine further seed nearly always, one that learns otherwise hardly ever."""

from collections.abc import Callable

import numpy as np
import pytest

from franca.reproduce.comparison import Agreement, Point, agreements, points_of, recorded_points
from franca.reproduce.curve import Curve
from franca.reproduce.errors import ReproduceError
from franca.reproduce.record import Record
from franca.reproduce.tolerance import FLOOR, tolerances

MakeRecord = Callable[..., Record]
POINTS, QUANTITIES, DRAWS = 20, 7, 100


def drawn_curve(random: np.random.Generator, correlation: float, shift: float = 0.0) -> Curve:
    """Quantities of mean 100 and standard deviation 1 whose neighbouring points correlate."""
    curve: dict[str, dict[int, float | None]] = {}
    for number in range(QUANTITIES):
        value, values = random.standard_normal(), {}
        for step in range(1, POINTS + 1):
            values[step] = 100 + shift + value
            value = correlation * value + (1 - correlation**2) ** 0.5 * random.standard_normal()
        curve[f"q{number}"] = values
    return curve


def share_that_differs(make_record: MakeRecord, correlation: float, shift: float, until: int | None = None) -> float:
    """Of runs whose every quantity is shifted by so many standard deviations."""
    random, differing = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        record = make_record(*(drawn_curve(random, correlation) for _ in range(3)))
        points = points_of(record, drawn_curve(random, correlation, shift), until)
        differing += any(one.differs for one in agreements(record, points))
    return differing / DRAWS


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.01), (0.5, 0.01), (0.8, 0.05)])
def test_a_further_seed_passes(correlation: float, most: float, make_record: MakeRecord) -> None:
    assert share_that_differs(make_record, correlation, 0.0) <= most


@pytest.mark.parametrize("until", [1, 3])
def test_a_further_seed_passes_at_its_beginning_too(until: int, make_record: MakeRecord) -> None:
    assert share_that_differs(make_record, 0.5, 0.0, until) <= 0.01


@pytest.mark.parametrize(("shift", "least"), [(5.0, 0.99), (4.0, 0.7)])
def test_a_small_shift_that_lasts_is_found(shift: float, least: float, make_record: MakeRecord) -> None:
    """By the mean: hardly any single point lies beyond twice the tolerance, seven standard deviations."""
    assert share_that_differs(make_record, 0.5, shift) >= least


def agreement(*deviations: float | None) -> Agreement:
    """Of points that lie so many tolerances off."""
    points = [
        Point(step, "loss", 1.0, 0.1, None if off is None else 1.0 + 0.1 * off)
        for step, off in enumerate(deviations, 1)
    ]
    return Agreement("loss", points)


def test_one_point_outside_proves_nothing() -> None:
    found = agreement(0.0, 1.5, 0.0, -1.5)
    assert [point.outside for point in found.points] == [False, True, False, True]
    assert not found.differs


def test_one_point_far_outside_differs() -> None:
    found = agreement(0.0, 1.2, -2.1, 0.0)
    assert found.differs
    assert (found.first.step, found.largest.step) == (2, 3)


def test_many_points_outside_on_one_side_differ() -> None:
    assert agreement(*[1.3] * 10).differs
    assert not agreement(*[1.3, -1.3] * 5).differs


def test_what_is_not_finite_differs() -> None:
    assert agreement(0.0, None).differs


def test_only_points_that_are_recorded_and_reached_count(make_record: MakeRecord) -> None:
    record = make_record({"loss": {10: 1.0, 20: 2.0}}, {"loss": {10: 3.0, 20: 2.0}})
    points = points_of(record, {"loss": {10: 2.5, 15: 9.0}, "other": {10: 1.0}})
    assert [(point.step, point.recorded, point.now) for point in points] == [(10, 2.0, 2.5)]
    assert recorded_points(record, until=19) == {(10, "loss")}


def test_the_tolerance_is_three_times_what_a_further_seed_is_off() -> None:
    seeds: dict[int, Curve] = {0: {"loss": {1: 1.0, 2: 4.0}}, 1: {"loss": {1: 3.0, 2: 4.0}}}
    found = tolerances(seeds, {})["loss"]
    assert found.value == pytest.approx(3 * 1.0 * 1.5**0.5), "variances 2 and 0 at two points"
    assert "seeds 0, 1" in found.origin


def test_seeds_that_agree_by_chance_do_not_ask_for_more_than_the_floor() -> None:
    seeds: dict[int, Curve] = {0: {"loss": {1: -5.0}}, 1: {"loss": {1: -5.0}}}
    assert tolerances(seeds, {})["loss"].value == pytest.approx(5 * FLOOR)


def test_one_seed_needs_tolerances() -> None:
    seeds: dict[int, Curve] = {4: {"loss": {1: 5.0}, "patch": {1: 2.0}}}
    with pytest.raises(ReproduceError, match=r"one seed \(4\) .* --tolerance patch=VALUE"):
        tolerances(seeds, {"loss": 0.1})
    assert tolerances(seeds, {"loss": 0.1, "patch": 0.2})["patch"].value == 0.2
    with pytest.raises(ReproduceError, match="--tolerance los: not a quantity"):
        tolerances(seeds, {"los": 0.1})
