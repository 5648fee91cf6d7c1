"""Means of a run's numbers between two logged lines, kept on the device."""

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

    def add(self, values: Tensor, finite: Tensor) -> None:
        """Take in one step: ``values`` (n,) in the order of the names, counted where ``finite`` (0-dim bool)."""
        self.sums += torch.where(finite, values, 0.0)
        self.finite_steps += finite

    def state(self) -> dict[str, Tensor]:
        """The sums, as tensors that a loaded state is copied into."""
        return {"sums": self.sums, "finite_steps": self.finite_steps}

    def read(self) -> dict[str, float]:
        """Means since the last call; empty when no step was finite."""
        finite_steps = int(self.finite_steps)
        means = (self.sums / max(finite_steps, 1)).tolist()
        self.sums.zero_()
        self.finite_steps.zero_()
        return dict(zip(self.names, means, strict=True)) if finite_steps else {}
