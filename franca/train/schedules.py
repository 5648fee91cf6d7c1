"""Values that change with the step: learning rate, weight decay, teacher momentum and temperature."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """A line of ``warmup`` steps from ``start`` to ``base`` (both reached), then a half cosine.

    The cosine takes the remaining m steps with angle pi * i / m, so ``final`` itself is reached at ``total``.
    """

    base: float
    final: float
    total: int
    warmup: int = 0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        if step >= self.total:
            return self.final
        if step < self.warmup:
            return self.start + (self.base - self.start) * step / max(self.warmup - 1, 1)
        remaining = self.total - self.warmup
        angle = math.pi * (step - self.warmup) / remaining
        return self.final + 0.5 * (self.base - self.final) * (1.0 + math.cos(angle))


@dataclass(frozen=True)
class StepValues:
    """What the schedules say at one step."""

    lr: float
    last_layer_lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float


@dataclass(frozen=True)
class Schedules:
    """The schedules of a run: first that of ``heads_alone`` to its end, then all others from their beginnings.

    While the heads learn alone, their prototypes with them, the others wait at their first values. Then the last layer
    follows ``lr`` after ``freeze_last_layer`` steps of 0.
    """

    heads_alone: CosineSchedule  # learning rate
    lr: CosineSchedule
    freeze_last_layer: int
    weight_decay: CosineSchedule
    teacher_momentum: CosineSchedule
    teacher_temperature: CosineSchedule

    def __call__(self, step: int) -> StepValues:
        alone = step < self.heads_alone.total
        since = max(step - self.heads_alone.total, 0)
        lr = self.heads_alone(step) if alone else self.lr(since)
        return StepValues(
            lr=lr,
            last_layer_lr=lr if alone or since >= self.freeze_last_layer else 0.0,
            weight_decay=self.weight_decay(since),
            teacher_momentum=self.teacher_momentum(since),
            teacher_temperature=self.teacher_temperature(since),
        )


@dataclass
class TeacherConfig:
    """How the teacher follows the student, and how sharp its targets are."""

    momentum: float = 0.994  # of the moving average at step 0, by a cosine to momentum_end
    momentum_end: float = 1.0
    temperature: float = 0.07  # Sinkhorn's, after the warm-up
    warmup_temperature: float = 0.04
    temperature_warmup_steps: int = 37_500

    def __post_init__(self) -> None:
        for name in ("momentum", "momentum_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"teacher.{name}={getattr(self, name)} must lie in [0, 1]")
        for name in ("temperature", "warmup_temperature"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"teacher.{name}={getattr(self, name)} must be above 0")
        if self.temperature_warmup_steps < 0:
            raise ValueError(f"teacher.temperature_warmup_steps={self.temperature_warmup_steps} must not be negative")

    def momentum_schedule(self, steps: int) -> CosineSchedule:
        """Momentum of the moving average over a run of ``steps``."""
        return CosineSchedule(self.momentum, self.momentum_end, steps)

    def temperature_schedule(self) -> CosineSchedule:
        """Teacher temperature: a line over the warm-up, constant afterwards."""
        steps = self.temperature_warmup_steps
        return CosineSchedule(self.temperature, self.temperature, steps, warmup=steps, start=self.warmup_temperature)
