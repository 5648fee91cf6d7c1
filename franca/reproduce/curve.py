"""The curve of a run: losses averaged over windows, and every score, from the lines of its metrics.jsonl."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

LOSSES = ("loss", "crop_local", "crop_global", "patch", "koleo")
SCORES = "knn_"  # how the names of scores begin
MOST_POINTS = 20

# quantity -> step -> value; None where no step of the window was finite. A window's step is its last.
Curve = Mapping[str, Mapping[int, float | None]]
Lines = Sequence[Mapping[str, Any]]


def window_of(steps: int, every: int) -> int:
    """Steps that one point of the losses stands for: whole lines, so many that there are at most MOST_POINTS points.

    every: steps between two lines.
    """
    return every * max(ceil(steps // every / MOST_POINTS), 1)


def curve_of(lines: Lines, steps: int, every: int, window: int) -> dict[str, dict[int, float | None]]:
    """All that a run of ``steps`` has reached so far; of a window only when its last line is there."""
    numbers = {line["step"]: line for line in lines if "images_per_second" in line}
    reached = max(numbers, default=0)
    last = steps // every * every
    curve: dict[str, dict[int, float | None]] = {name: {} for name in LOSSES}
    for first in range(0, reached, window):
        end = min(first + window, last)
        if end <= reached:
            inside = [numbers[step] for step in range(first + every, end + 1, every) if step in numbers]
            for name in LOSSES:
                curve[name][end] = _mean([line[name] for line in inside if line.get(name) is not None])
    for line in lines:
        for name in (key for key in line if key.startswith(SCORES)):
            curve.setdefault(name, {})[line["step"]] = line[name]
    return {name: values for name, values in curve.items() if values}


def places_of(curve: Mapping[str, Mapping[int, Any]]) -> set[tuple[int, str]]:
    """(step, quantity) of all its points."""
    return {(step, name) for name, values in curve.items() for step in values}


def steps_of(curve: Curve) -> list[int]:
    """All steps at which anything is known."""
    return sorted({step for values in curve.values() for step in values})


def minutes_of(lines: Lines) -> float:
    """Time that the steps of a run took, without evaluations and saves; also of one that was stopped and continued."""
    seconds, images = 0.0, 0
    for line in lines:
        if "images_per_second" in line:
            seconds += (line["images"] - images) / line["images_per_second"]
            images = line["images"]
    return seconds / 60


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
