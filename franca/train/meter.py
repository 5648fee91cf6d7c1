"""Means of a run's numbers between two logged lines, kept on the device; and where the time went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Meter:
    """Sums the named quantities of every finite step; read back once per logged line.

    The sums are part of a run's saved state, so that a resumed run logs the same means.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(len(names), device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.restart_clock()

    def add(self, values: Tensor, finite: Tensor) -> None:
        """Take in one step: ``values`` (n,) in the order of the names, counted where ``finite`` (0-dim bool)."""
        self.sums += torch.where(finite, values, 0.0)
        self.finite_steps += finite
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        """The sums, as tensors that a loaded state is copied into."""
        return {"sums": self.sums, "finite_steps": self.finite_steps}

    def restart_clock(self) -> None:
        """Count time and throughput from now on."""
        self.steps = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (saving, evaluating) counts neither as training nor as waiting."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def read(self, images_per_step: int) -> dict[str, float]:
        """Means since the last call (absent when no step was finite), images per second, share of time waiting."""
        finite_steps = int(self.finite_steps)
        means = (self.sums / max(finite_steps, 1)).tolist()
        elapsed = time.perf_counter() - self.started
        line = dict(zip(self.names, means, strict=True)) if finite_steps else {}
        line["images_per_second"] = self.steps * images_per_step / elapsed
        line["data_wait"] = self.waited / elapsed
        self.sums.zero_()
        self.finite_steps.zero_()
        self.restart_clock()
        return line
