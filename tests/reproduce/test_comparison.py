"""Which runs pass: a genuine further seed nearly always, one that learns otherwise hardly ever."""

from collections.abc import Callable

import numpy as np
import pytest

from franca.reproduce.comparison import Agreement, Point, agreements, points_of, recorded_points
from franca.reproduce.curve import Curve
from franca.reproduce.errors import ReproduceError
from franca.reproduce.record import Record
from franca.reproduce.tolerance import FLOOR, LEAST, tolerances

MakeRecord = Callable[..., Record]
POINTS, QUANTITIES, DRAWS, FIRST = 20, 5, 200, 3


def drawn_curve(random: np.random.Generator, correlation: float, shift: float = 0.0, noise: float = 1.0) -> Curve:
    """Quantities of mean 100 whose neighbouring points correlate: of deviation 1, in the FIRST three ``noise``."""
    curve: dict[str, dict[int, float | None]] = {}
    for number in range(QUANTITIES):
        value, values = random.standard_normal(), {}
        for step in range(1, POINTS + 1):
            values[step] = 100 + (shift + value) * (noise if step <= FIRST else 1.0)
            value = correlation * value + (1 - correlation**2) ** 0.5 * random.standard_normal()
        curve[f"q{number}"] = values
    return curve


def share_that_differs(
    make_record: MakeRecord, correlation: float, shift: float = 0.0, noise: float = 1.0, until: int | None = None
) -> float:
    """Of runs whose every quantity is shifted by so many standard deviations."""
    random, differing = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        record = make_record(*(drawn_curve(random, correlation, noise=noise) for _ in range(3)))
        points = points_of(record, drawn_curve(random, correlation, shift, noise), until)
        differing += any(one.differs for one in agreements(record, points))
    return differing / DRAWS


@pytest.mark.parametrize(
    ("correlation", "noise", "until", "most"),
    [
        *((0.8, 1.0, None, 0.005), (0.9, 1.0, None, 0.01), (0.5, 1.0, 1, 0.0)),
        *((0.8, 3.0, None, 0.02), (0.8, 3.0, 3, 0.08)),
    ],
)
def test_a_further_seed_passes(
    correlation: float, noise: float, until: int | None, most: float, make_record: MakeRecord
) -> None:
    """About twice the rates that `franca.reproduce.comparison` states of 4,000 comparisons."""
    assert share_that_differs(make_record, correlation, noise=noise, until=until) <= most


@pytest.mark.parametrize(
    ("shift", "until", "least", "most"), [(4.0, None, 0.85, 1), (5.0, 3, 0.75, 1), (3.0, 3, 0, 0.2)]
)
def test_a_shift_that_lasts_is_found_the_smaller_the_more_points_there_are(
    shift: float, until: int | None, least: float, most: float, make_record: MakeRecord
) -> None:
    """By the mean: hardly any single point lies beyond FAR tolerances, nine standard deviations."""
    assert least <= share_that_differs(make_record, 0.5, shift, until=until) <= most


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
    found = agreement(0.0, 1.2, -2.6, 0.0)
    assert found.differs
    assert (found.first.step, found.largest.step) == (2, 3)


def test_many_points_outside_on_one_side_differ() -> None:
    assert agreement(*[1.2] * 10).differs
    assert not agreement(*[1.2, -1.2] * 5).differs


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
    assert list(found) == [1, 2]
    assert found[1] == found[2] == pytest.approx(3 * 1.0 * 1.5**0.5), "variances 2 and 0 at two points"


def test_where_seeds_lie_farther_apart_the_tolerance_is_larger() -> None:
    apart = {step: 6.0 if step < 4 else 2.0 for step in range(1, 11)}
    seeds: dict[int, Curve] = {0: {"loss": dict.fromkeys(apart, 0.0)}, 1: {"loss": apart}}
    found = {step: (value / 3) ** 2 / 1.5 for step, value in tolerances(seeds, {})["loss"].items()}
    noisy, all_points = 36 / 2, (3 * 36 + 7 * 4) / 10 / 2
    assert [found[step] for step in (1, 2, 3)] == pytest.approx([noisy] * 3)
    assert found[4] == pytest.approx((2 * 36 + 4) / 3 / 2), "three that hold it: 2, 3, 4"
    assert [found[step] for step in (6, 10)] == pytest.approx([all_points] * 2), "never less than over all"


def test_seeds_that_agree_by_chance_do_not_ask_for_more_than_the_floor() -> None:
    seeds: dict[int, Curve] = {0: {"loss": {1: -5.0}}, 1: {"loss": {1: -5.0}}}
    assert tolerances(seeds, {})["loss"] == {1: pytest.approx(5 * FLOOR)}


def test_what_is_0_in_all_seeds_agrees_when_it_is_0_and_differs_when_it_is_not(make_record: MakeRecord) -> None:
    record = make_record(*[{"koleo": {1: 0.0, 2: 0.0}}] * 2)
    assert record.tolerances["koleo"] == {1: LEAST, 2: LEAST}
    found = [agreements(record, points_of(record, {"koleo": {1: 0.0, 2: now}}))[0] for now in (0.0, 1e-4, -5.0)]
    assert [one.differs for one in found] == [False, True, True]
    assert (found[0].mean, found[2].first.step) == (0.0, 2)


def test_one_seed_needs_tolerances() -> None:
    seeds: dict[int, Curve] = {4: {"loss": {1: 5.0}, "patch": {1: 2.0}}}
    with pytest.raises(ReproduceError, match=r"one seed \(4\) .* --tolerance patch=VALUE"):
        tolerances(seeds, {"loss": 0.1})
    assert tolerances(seeds, {"loss": 0.1, "patch": 0.2})["patch"] == {1: 0.2}
    with pytest.raises(ReproduceError, match="--tolerance los: not a quantity"):
        tolerances(seeds, {"los": 0.1})
