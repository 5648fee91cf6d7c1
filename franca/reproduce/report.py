"""What a reproduction found, in words, as a table and as plain data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from franca.eval.result import columns
from franca.reproduce.comparison import FAR, Agreement, Point
from franca.reproduce.record import Record

HEADER = ("quantity", "points", "recorded", "tolerance", "now", "mean off", "at most", "")


@dataclass(frozen=True)
class Outcome:
    """A whole comparison.

    until: step at which it was to end, None for the whole run. differences: from the record's facts, in words.
    made_elsewhere: whether something else than this command began the run. other_images: whether it is known to have
    learned from other images than those that were recorded.
    own: the largest deviation from the recorded curve of the same seed, in tolerances; None where it isn't recorded.
    """

    record: Record
    seed: int
    steps: int  # of the whole run
    until: int | None
    agreements: Sequence[Agreement]
    differences: Sequence[str]
    made_elsewhere: bool
    other_images: bool
    own: float | None

    @property
    def reproduced(self) -> bool:
        """Whether every quantity agrees."""
        return not any(agreement.differs for agreement in self.agreements)

    @property
    def part(self) -> str:
        """Which beginning of the run it is of, in words; "" where it is of the whole."""
        asked = self.steps if self.until is None else self.until
        return f", its first {asked} of {self.steps} steps" if asked < self.steps else ""

    @property
    def answer(self) -> str:
        """In a word, and a warning where it is of other images."""
        return self.verdict + (", with other images" if self.other_images else "")

    @property
    def verdict(self) -> str:
        """In one word."""
        return "reproduced" if self.reproduced else "differs"

    @property
    def points(self) -> list[Point]:
        """Of all quantities."""
        return [point for agreement in self.agreements for point in agreement.points]


def point_line(point: Point, record: Record) -> str:
    """A point that was just reached: step, quantity, recorded ± tolerance, now."""
    now = "not finite" if point.now is None else f"{point.now:.5g}"
    words = "FAR OUTSIDE" if point.far else "outside" if point.outside else "ok"
    width = max(map(len, record.tolerances))
    band = f"{point.recorded:.5g} ± {point.tolerance:.2g}"
    return f"  step {point.step:>6}  {point.quantity:<{width}}  recorded {band:<18} now {now:<11} {words}"


def table(agreements: Sequence[Agreement]) -> str:
    """One row for each quantity, at its last point; deviations are in tolerances."""
    return columns([HEADER, *(_row(agreement) for agreement in agreements)])


def verdict(outcome: Outcome) -> list[str]:
    """The answer in words, then what to look at."""
    record = outcome.record
    seeds = ", ".join(map(str, record.seeds))
    what = f"{record.recipe} (seed {outcome.seed}{outcome.part})"
    outside = sum(point.outside for point in outcome.points)
    count = f"{len(outcome.points)} points, {outside} of them outside the tolerance"
    learns = "learns" if outcome.reproduced else "does not learn"
    lines = [f"{outcome.answer}: {what} {learns} as seeds {seeds} did where they were recorded ({count})"]
    if not outcome.reproduced:
        differing = sorted((one for one in outcome.agreements if one.differs), key=lambda one: one.first.step)
        lines += [f"  {_where(agreement)}" for agreement in differing]
    if all(len(agreement.points) == 1 for agreement in outcome.agreements):
        lines.append("one point of each: so short a check finds what is grossly wrong, and nothing else")
    if outcome.own is not None:
        lines.append(f"from the recorded curve of seed {outcome.seed} itself: at most {outcome.own:.2g} tolerances off")
    lines += differing_lines(outcome.made_elsewhere, outcome.differences)
    if not outcome.reproduced and not outcome.differences:
        lines.append("all that the record states is the same here: look at what was changed without being stated")
    return lines


def differing_lines(made_elsewhere: bool, differences: Sequence[str]) -> list[str]:
    """In which way a run differs from the record's, as far as that is known."""
    if made_elsewhere:
        return ["the run was made elsewhere, not begun by this command: its code, torch, device and images are unknown"]
    return [f"differs from the record: {words}" for words in differences]


def as_data(outcome: Outcome) -> dict[str, Any]:
    """For reproduce.json; a value that was not finite is null."""
    return {
        "recipe": outcome.record.recipe,
        "seed": outcome.seed,
        "recorded_seeds": list(outcome.record.seeds),
        "verdict": outcome.verdict,
        "steps": outcome.steps,
        "until": outcome.until,
        "made_elsewhere": outcome.made_elsewhere,
        "other_images": outcome.other_images,
        "differs_from_the_record": list(outcome.differences),
        "quantities": [
            {
                "quantity": agreement.quantity,
                "agrees": not agreement.differs,
                "mean_deviation": _finite(agreement.mean),
                "largest_deviation": _finite(agreement.largest.deviation),
                "largest_at_step": agreement.largest.step,
            }
            for agreement in outcome.agreements
        ],
        "points": [asdict(point) for point in outcome.points],
    }


def _row(agreement: Agreement) -> tuple[str, ...]:
    last, largest = agreement.points[-1], agreement.largest
    return (
        agreement.quantity,
        str(len(agreement.points)),
        f"{last.recorded:.5g}",
        f"{last.tolerance:.2g}",
        "not finite" if last.now is None else f"{last.now:.5g}",
        f"{agreement.mean:+.2f} of {agreement.limit:.2f}",
        f"{abs(largest.deviation):.2f} of {FAR:.2f} at step {largest.step}",
        "DIFFERS" if agreement.differs else "ok",
    )


def _where(agreement: Agreement) -> str:
    point = agreement.first
    now = "not finite" if point.now is None else f"{point.now:.5g}, {abs(point.deviation):.1f} tolerances off"
    return (
        f"{agreement.quantity}: first at step {point.step}, recorded {point.recorded:.5g} ± {point.tolerance:.2g}, now "
        f"{now}; over {len(agreement.points)} points {agreement.mean:+.2f} tolerances on average"
    )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
