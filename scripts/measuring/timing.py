"""Seconds of some work, and how several measurements of it are written."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from measuring.progress import say


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of the processor: all threads of this process."""

    clock: float
    processor: float

    def on(self, device: torch.device) -> float:
        """Those that count: of the processor where it does the work, since other programs don't lengthen them."""
        return self.processor if device.type == "cpu" else self.clock


def finish(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> Took:
    """From an idle device to an idle device."""
    finish(device)
    began, processor = time.perf_counter(), time.process_time()
    work()
    finish(device)
    return Took(time.perf_counter() - began, time.process_time() - processor)


def in_turns(ways: Sequence[Callable[[], Took]], rounds: int, what: str = "") -> list[list[Took]]:
    """Each way once a round, A B A B: what every way took, round by round; those of ``what`` are said."""
    found: list[list[Took]] = [[] for _ in ways]
    for number in range(rounds):
        if what:
            say(f"{what}, round {number + 1} of {rounds}")
        for way, took in zip(ways, found, strict=True):
            took.append(way())
    return found


def ratios(some: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(some, others, strict=True)]


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """Median, least and largest; with so many digits after the point, or three that count in the median."""
    middle, least, largest = statistics.median(values), min(values), max(values)
    if digits is None:
        digits = max(0, 2 - math.floor(math.log10(middle))) if middle > 0 else 0
    return f"{middle:,.{digits}f} ({least:,.{digits}f}-{largest:,.{digits}f})"
