"""Where the time goes, by a clock of the test's own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from franca.train import clock as clock_module
from franca.train.clock import Clock, Pace


class Time:
    """Seconds that pass when the test says so, for the program and, behind it, for a device."""

    def __init__(self) -> None:
        self.now = 100.0
        self.device_done = 100.0  # when the device will have done all it was given

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float) -> None:
        """Give the device work; the program goes on at once."""
        self.device_done = max(self.device_done, self.now) + seconds

    def synchronize(self, _: torch.device) -> None:
        self.now = max(self.now, self.device_done)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock's time is this one, and its device a queue without any other content."""
    ours = Time()

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = max(ours.now, ours.device_done)

        def elapsed_time(self, later: "Event") -> float:
            return 1e3 * (later.at - self.at)

    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: ours.now))
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", ours.synchronize)
    return ours


CPU, DEVICE = torch.device("cpu"), torch.device("xpu")


def test_the_cpu_waits_as_long_as_the_program_does(time: Time) -> None:
    clock = Clock(CPU)
    for _ in range(2):
        with clock.waiting():
            time.passes(1.0)
        time.passes(3.0)
        clock.step()
    assert clock.read() == Pace(steps=2, seconds=8.0, waited=2.0)
    time.passes(4.0)
    clock.step()
    assert clock.read() == Pace(steps=1, seconds=4.0, waited=0.0), "since the last reading"


def test_a_pause_counts_neither_as_training_nor_as_waiting_also_when_read_in_it(time: Time) -> None:
    clock = Clock(CPU)
    time.passes(2.0)
    clock.step()
    with clock.paused():
        time.passes(50.0)
        assert clock.read() == Pace(1, 2.0, 0.0)
        time.passes(50.0)
    time.passes(3.0)
    clock.step()
    with clock.paused():
        time.passes(50.0)
    time.passes(1.0)
    clock.step()
    assert clock.read() == Pace(2, 4.0, 0.0)


def test_a_device_that_is_busy_does_not_wait_for_the_batch_that_the_program_waits_for(time: Time) -> None:
    clock = Clock(DEVICE)
    for _ in range(10):
        with clock.waiting():
            time.passes(0.9)  # the batch comes just in time, or before
        time.passes(0.05)
        time.work(1.0)
        clock.step()
    pace = clock.read()
    assert pace.waited == pytest.approx(0.9), "for the first batch only"
    assert pace.seconds == pytest.approx(time.device_done - 100.0)


def test_a_device_that_runs_dry_waits_for_what_is_left_of_the_programs_wait(time: Time) -> None:
    clock = Clock(DEVICE)
    for _ in range(10):
        with clock.waiting():
            time.passes(1.5)
        time.work(1.0)
        clock.step()
    assert clock.read().waited == pytest.approx(1.5 + 9 * 0.5)


def test_steps_that_are_on_their_way_are_training_not_pause(time: Time) -> None:
    """The program is far ahead when a line is due; each line still tells the device's own pace."""
    clock = Clock(DEVICE)
    for _ in range(3):
        for _ in range(10):
            time.passes(0.1)
            time.work(1.0)
            clock.step()
        with clock.paused():
            pace = clock.read()
            time.passes(7.0)
        assert pace.step_seconds == pytest.approx(1.0, rel=0.02)
