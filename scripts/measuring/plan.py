"""How many steps are taken."""

import argparse
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """steps: of a block. blocks: that are measured. warmup: steps before them, after the first ones."""

    steps: int
    blocks: int
    warmup: int

    @classmethod
    def of(cls, options: argparse.Namespace, device: torch.device) -> "Plan":
        """As asked for; what isn't, by the device: its step takes a fraction of a second, a CPU's up to minutes."""
        usual = ON_CPU if device.type == "cpu" else ON_ACCELERATOR
        given = {name: getattr(options, name) for name in ("steps", "blocks", "warmup")}
        return cls(**{name: getattr(usual, name) if value is None else value for name, value in given.items()})

    def after_the_first(self, options: argparse.Namespace, device: torch.device) -> int:
        """Steps in all but for the first ones, whose number depends on what is compiled."""
        on_cpu = device.type == "cpu"
        count = self.warmup + self.blocks * self.steps + (1 if on_cpu else 2)  # to count waits
        if options.profile or options.trace:
            count += self.steps + (options.trace is not None or not on_cpu)
        if options.against:
            count += 2 * (1 + self.blocks) * (1 + self.steps)
        return count

    def __str__(self) -> str:
        return f"{self.blocks} blocks of {self.steps} (--blocks, --steps), {self.warmup} before (--warmup)"


ON_ACCELERATOR = Plan(steps=10, blocks=5, warmup=5)
ON_CPU = Plan(steps=2, blocks=3, warmup=1)
