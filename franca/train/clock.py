"""Where a run's time goes between two logged lines: training, waiting for data, or neither."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pace:
    """Steps made in so many seconds of training, of which the device stood idle for want of data for ``waited``."""

    steps: int
    seconds: float
    waited: float

    @property
    def step_seconds(self) -> float:
        """One step."""
        return self.seconds / max(self.steps, 1)

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / max(self.seconds, 1e-9)


class Clock:
    """Counts steps and seconds; read once per logged line.

    An accelerator works behind the program, which therefore may wait for the next batch while the device is still busy
    with the last one. So there a wait is measured on the device, between two marks in its queue, and waited for only
    where time is read or stops.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._begin_anew()
        self._since: float | None = time.perf_counter()  # None: paused

    def _begin_anew(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._gaps: list[tuple[torch.Event, torch.Event]] = []

    def step(self) -> None:
        """One more step is on its way."""
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data, as far as the device has nothing else to do."""
        if self.device.type == "cpu":
            began = time.perf_counter()
            yield
            self._waited += time.perf_counter() - began
        else:
            before, after = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._gaps.append((before, after))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside (saving, evaluating) does not count. The steps on their way are waited for first, and do."""
        self._count()
        self._since = None
        yield
        self._since = time.perf_counter()

    def read(self) -> Pace:
        """What was counted since the last call; waits for the device."""
        self._count()
        pace = Pace(self._steps, self._seconds, self._waited)
        self._begin_anew()
        return pace

    def _count(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
            self._waited += sum(before.elapsed_time(after) for before, after in self._gaps) / 1e3
            self._gaps.clear()
        if self._since is not None:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._since = now
