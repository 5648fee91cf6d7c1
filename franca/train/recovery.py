"""Steps whose loss or gradient is not finite: counted on the device, skipped, and named when a line is logged."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RecoveryConfig:
    """How much non-finite arithmetic a run bears."""

    max_skips: int = 10  # steps skipped in a row before the run goes back to the last good checkpoint
    max_rollbacks: int = 3  # times that it goes back before it stops

    def __post_init__(self) -> None:
        if self.max_skips < 1 or self.max_rollbacks < 0:
            raise ValueError(
                f"recovery.max_skips={self.max_skips} must be at least 1 and "
                f"recovery.max_rollbacks={self.max_rollbacks} at least 0"
            )


class NonFiniteLoss(RuntimeError):
    """The loss stayed non-finite after every allowed return to a good checkpoint."""


class StepGuard:
    """Watches the quantities of every step without waiting for the device; read back with :meth:`report`.

    ``counts[i]``: steps in which quantity i was not finite; ``first[i]``: the first such step, or -1;
    ``streak``: steps skipped in a row up to now. ``last_sentence``: of the last report that had one.
    """

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.counts = torch.zeros(len(names), dtype=torch.int64, device=device)
        self.first = torch.full((len(names),), -1, dtype=torch.int64, device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device)
        self.last_sentence = ""

    def watch(self, values: Tensor, step: int) -> Tensor:
        """Record one step's quantities, (n,) in the order of ``names``; returns whether all are finite, 0-dim bool."""
        bad = ~torch.isfinite(values)
        self.counts += bad
        self.first = torch.where(bad & (self.first < 0), step, self.first)
        finite = ~bad.any()
        self.streak = torch.where(finite, 0, self.streak + 1)
        return finite

    def report(self) -> tuple[int, str]:
        """Steps skipped in a row up to now, and a sentence on what was bad since the last report ("" for nothing)."""
        alike: dict[tuple[int, int], list[str]] = {}
        for name, count, first in zip(self.names, self.counts.tolist(), self.first.tolist(), strict=True):
            if count:
                alike.setdefault((count, first), []).append(name)
        sentence = "; ".join(
            f"{', '.join(names)} not finite in {count} step{'s' * (count > 1)}, first at step {first}"
            for (count, first), names in alike.items()
        )
        if sentence:
            self.last_sentence = sentence
            self.counts.zero_()
            self.first.fill_(-1)
        return int(self.streak), sentence
