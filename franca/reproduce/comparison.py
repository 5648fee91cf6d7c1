"""A run's points beside the record's, and when they are too far from it.

A curve of 20 points and 5 quantities has 100 chances to lie outside a band of three standard deviations, and its points
are no independent draws: a seed that begins low stays low for a while. So one point outside the tolerance T is shown
and proves nothing. A quantity differs when a single point is off by more than FAR tolerances, or when the mean of its
signed deviations over n points exceeds T (1 + (FAR - 1)/n), the same for n = 1. Chance lets points fall on both sides
and a wrong run lies on one, so the mean finds small shifts that last; the single point finds large ones at once.

How often a genuine further seed fails, in 4,000 drawn comparisons of five quantities of 20 points with three recorded
seeds, by the correlation of neighbouring points: 0.0 % at 0.5, 0.1 % at 0.8, 0.4 % at 0.9, 4 % at 0.95. With the first
three points three times as noisy as the others: 0.2 %, 1.0 %, 1.8 %, 3 %; over those three alone: 0.6 %, 4 %, 7 %,
12 %. With two recorded seeds at 0.8 it is 0.1 %, and 4 % and 12 % with such noise.
`tests/reproduce/test_comparison.py` draws fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from franca.reproduce.curve import Curve, places_of
from franca.reproduce.record import Record

FAR = 2.5  # tolerances: what no single point may exceed


@dataclass(frozen=True)
class Point:
    """One value of the run beside the recorded mean; now is None where the run was not finite."""

    step: int
    quantity: str
    recorded: float
    tolerance: float
    now: float | None

    @property
    def deviation(self) -> float:
        """Signed, in tolerances."""
        return float("inf") if self.now is None else (self.now - self.recorded) / self.tolerance

    @property
    def outside(self) -> bool:
        """Of the tolerance."""
        return abs(self.deviation) > 1

    @property
    def far(self) -> bool:
        """So far outside that this point alone is a difference."""
        return abs(self.deviation) > FAR


@dataclass(frozen=True)
class Agreement:
    """All points of one quantity, in the order of their steps."""

    quantity: str
    points: Sequence[Point]

    @property
    def mean(self) -> float:
        """Signed deviation over all points, in tolerances."""
        return fmean(point.deviation for point in self.points)

    @property
    def limit(self) -> float:
        """What the mean may be, in tolerances."""
        return 1 + (FAR - 1) / len(self.points)

    @property
    def largest(self) -> Point:
        """The point that lies farthest off."""
        return max(self.points, key=lambda point: abs(point.deviation))

    @property
    def differs(self) -> bool:
        """By the rule above."""
        return self.largest.far or abs(self.mean) > self.limit

    @property
    def first(self) -> Point:
        """Of a quantity that differs: where it left the tolerance."""
        return next(point for point in self.points if point.outside)


def points_of(record: Record, curve: Curve, until: int | None = None) -> list[Point]:
    """All recorded points that the run has reached, up to step ``until``, in the order of their steps."""
    found = [
        Point(step, name, record.mean(name, step), tolerance, curve[name][step])
        for name, tolerances in record.tolerances.items()
        for step, tolerance in tolerances.items()
        if (until is None or step <= until) and step in curve.get(name, {})
    ]
    return sorted(found, key=lambda point: point.step)


def recorded_points(record: Record, until: int | None = None) -> set[tuple[int, str]]:
    """(step, quantity) of all that a run is compared at, up to step ``until``."""
    return {place for place in places_of(record.tolerances) if until is None or place[0] <= until}


def agreements(record: Record, points: Sequence[Point]) -> list[Agreement]:
    """By quantity, in the record's order; quantities without a point are left out."""
    by_quantity = {name: [point for point in points if point.quantity == name] for name in record.tolerances}
    return [Agreement(name, own) for name, own in by_quantity.items() if own]
