"""Two ways to a linear position predictor for features from which earlier planes were removed.

Legend: D width; `removed` (k, D) is an orthonormal basis of what earlier rounds removed. Features are never changed:
training a predictor W on features without those directions is training W (I - removed^T removed) on them as they are.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from franca.eval.protocols.position_moments import Moments
from rasa.errors import RasaError
from rasa.patches import Patches


@dataclass(frozen=True)
class Predictor:
    """A position predictor and its errors: mean squared, over patches and both coordinates (half of paper's L_pos)."""

    weight: Tensor  # (2, D) float64 on the CPU, row first, nothing of it within what was removed
    train_error: float
    held_out_error: float
    chance: float  # error of always predicting the centre


class Solver(Protocol):
    """Fits a predictor to the features without the removed directions."""

    width: int

    @property
    def doubt(self) -> str:
        """Why it may find nothing where there is something, for an error message."""
        ...

    def __call__(self, removed: Tensor, number: int) -> Predictor: ...


class ClosedFormSolver:
    """Ridge regression of the position, with an intercept, from sums that one pass over the images gives.

    Its strength is the one that predicts best on the held-out crops. It stands in for what early stopping does in the
    gradient solver.
    """

    def __init__(self, fit: Moments, held_out: Moments) -> None:
        self.fit, self.held_out = fit, held_out
        self.width = len(fit.shift)

    @property
    def doubt(self) -> str:
        return f"More than {self.fit.crops} crops measure a weak one better"

    def __call__(self, removed: Tensor, number: int) -> Predictor:
        found = self.fit.ridge(self.held_out, removed)
        # four times the slope: what a sigmoid needs at its centre to follow the line
        return Predictor(4 * found.weight.T, found.error, found.validation_error, self.fit.chance)


@dataclass
class GradientConfig:
    """The paper's optimisation of a round (Appendix B): AdamW without weight decay, cosine from `lr` to 0."""

    lr: float = 2e-3
    epochs: int = 5
    batch_size: int = 128  # crops per step

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"gradient.{name}={getattr(self, name)} must be above 0")


class GradientSolver:
    """The paper's way: sigmoid(W z) against the position, by mean squared error (Sec. 2.3).

    Features are divided by their root mean square, which is about 1 after a layer norm: one learning rate fits features
    of any scale. A mean far from zero slows it down.
    """

    def __init__(self, fit: Patches, held_out: Patches, config: GradientConfig, seed: int) -> None:
        self.fit, self.held_out, self.config, self.seed = fit, held_out, config, seed
        self.width = held_out.width
        self.scale = held_out.root_mean_square() or 1.0

    @property
    def doubt(self) -> str:
        steps = self.config.epochs * self.fit.steps(self.config.batch_size)
        return (
            f"The predictor made {steps} steps (the paper's some 670), which may be too few: raise gradient.epochs="
            f"{self.config.epochs}, lower gradient.batch_size={self.config.batch_size}, or use solver=closed_form"
        )

    def __call__(self, removed: Tensor, number: int) -> Predictor:
        device = self.fit.device
        remaining = (torch.eye(self.width, dtype=torch.float64) - removed.T @ removed).float().to(device)
        draws = torch.Generator().manual_seed(self.seed * 1000 + number)
        start = (2 * torch.rand(2, self.width, generator=draws) - 1) / math.sqrt(self.width)
        weight = start.to(device).requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=self.config.lr, weight_decay=0.0)
        steps = self.config.epochs * self.fit.steps(self.config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[Tensor] = []
        for epoch in range(self.config.epochs):
            first_pass = (number - 1) * self.config.epochs
            for features, positions in self.fit.batches(self.config.batch_size, first_pass + epoch):
                loss = (self._predict(weight @ remaining, features) - positions).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
        last_epoch = torch.stack(losses[-self.fit.steps(self.config.batch_size) :]).mean().item()
        found = (weight.detach() @ remaining).cpu().double() / self.scale
        return Predictor(found, last_epoch, self._held_out_error(weight.detach() @ remaining), self.held_out.chance)

    def _predict(self, weight: Tensor, features: Tensor) -> Tensor:
        return torch.sigmoid(features @ (weight / self.scale).T)

    def _held_out_error(self, weight: Tensor) -> float:
        squares, saturated, count = 0.0, 0, 0
        for features, positions in self.held_out.batches(self.config.batch_size):
            predicted = self._predict(weight, features)
            squares += (predicted - positions).square().sum().item()
            saturated += int(((predicted < 1e-3) | (predicted > 1 - 1e-3)).sum())
            count += predicted.numel()
        error = squares / count
        if not math.isfinite(error) or (saturated > count / 2 and error > self.held_out.chance):
            raise RasaError(
                f"the position predictor is saturated: {saturated / count:.0%} of its predictions are 0 or 1, error "
                f"{error:.3f} where guessing the centre has {self.held_out.chance:.3f}. "
                f"Lower gradient.lr={self.config.lr}, or use solver=closed_form"
            )
        return error
