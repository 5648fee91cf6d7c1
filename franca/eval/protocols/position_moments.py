"""Sums over patches from which every least-squares predictor of position follows, whatever was removed before it.

Legend: N = h * w patches of a crop, D width. Positions are (row, column) in [0, 1], row first (paper Sec. 2.3). Which
positions the patches have is known, so the sum of the features in each cell of the grid says all about both together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.protocols.position import PositionPredictor, chance_mse, grid_positions

RIDGES = tuple(10.0**power for power in range(-6, 2))
BLOCK = 32  # crops read at once


@dataclass(frozen=True)
class Ridge:
    """A linear predictor z @ weight + bias of the position, and its mean squared errors over both coordinates."""

    weight: Tensor  # (D, 2)
    bias: Tensor  # (2,)
    strength: float  # of the ridge, times the features' mean variance
    error: float  # on the crops that it was fitted to
    validation_error: float  # on those that chose its strength


@dataclass
class Moments:
    """Sums of z - shift over crops, float64 on the CPU; the shift lies near the mean, which keeps digits."""

    grid: tuple[int, int]
    shift: Tensor  # (D,)
    gram: Tensor  # (D, D), sum of outer products over all patches
    cells: Tensor  # (N, D), sum per cell of the grid
    crops: int = 0

    @classmethod
    def like(cls, features: Tensor) -> "Moments":
        """Empty ones for features (B, h, w, D), with their mean as the shift."""
        _, h, w, width = features.shape
        gram = torch.zeros(width, width, dtype=torch.float64)
        cells = torch.zeros(h * w, width, dtype=torch.float64)
        shift = features.flatten(0, 2).float().mean(dim=0)  # of the type in which it is taken out
        return cls((h, w), shift.cpu().double(), gram, cells)

    def add(self, features: Tensor) -> None:
        """Take in the features (B, h, w, D) of some crops, on any device."""
        shifted = features.flatten(1, 2).float() - self.shift.to(features.device, torch.float32)
        rows = shifted.flatten(0, 1)
        self.gram += (rows.T @ rows).cpu().double()
        self.cells += shifted.sum(dim=0).cpu().double()
        self.crops += len(features)

    @property
    def mean(self) -> Tensor:
        """Of the features, (D,)."""
        return self.shift + self._mean_beyond_shift

    @property
    def _mean_beyond_shift(self) -> Tensor:
        return self.cells.sum(dim=0) / (self.crops * len(self.cells))

    @property
    def covariance(self) -> Tensor:
        """Of the features, (D, D)."""
        mean = self._mean_beyond_shift
        return self.gram / (self.crops * len(self.cells)) - mean.outer(mean)

    @property
    def covariance_with_position(self) -> Tensor:
        """Of features and positions, (D, 2)."""
        offsets = grid_positions(*self.grid) - 0.5  # mean 0 over the grid
        return self.cells.T @ offsets / (self.crops * len(self.cells))

    @property
    def chance(self) -> float:
        """Mean squared error of always predicting the centre, over both coordinates."""
        return chance_mse(*self.grid)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of the predictor z @ weight + bias, (D, 2) and (2,), over both coordinates."""
        away = self.mean @ weight + bias - 0.5
        spread = (weight * (self.covariance @ weight)).sum() - 2 * (weight * self.covariance_with_position).sum()
        return self.chance + (spread + away.square().sum()).item() / 2

    def ridge(self, validation: "Moments", removed: Tensor | None = None, strengths: Sequence[float] = RIDGES) -> Ridge:
        """Ridge regression with an intercept; its strength is the one that errs least on other crops.

        Without a ridge, directions of hardly any variance are found, which new images don't share.

        Args:
            validation: of crops of other images.
            removed: (k, D), an orthonormal basis of directions that the weight must not have.
            strengths: to choose from, times the features' mean variance.
        """
        remaining = torch.eye(len(self.shift), dtype=torch.float64)
        if removed is not None:
            remaining = remaining - removed.T @ removed
        variances, directions = torch.linalg.eigh(remaining @ self.covariance @ remaining)
        variances = variances.clamp_min(0)
        loadings = directions.T @ remaining @ self.covariance_with_position
        scale = variances.mean().clamp_min(1e-30)
        found = []
        for strength in strengths:
            weight = remaining @ directions @ (loadings / (variances + strength * scale)[:, None])
            bias = 0.5 - self.mean @ weight
            found.append(Ridge(weight, bias, strength, self.error(weight, bias), validation.error(weight, bias)))
        return min(found, key=lambda one: one.validation_error)


def fit_ridge(features: Tensor, others: Tensor) -> PositionPredictor:
    """A fresh linear predictor of position for few images: ridge regression.

    Its strength is the one with which a fit to the first images errs least on the others; then it is fitted to both.

    Args:
        features, others: (I, h, w, D), of different images.

    Raises:
        ValueError: no images.
    """
    if not len(features) or not len(others):
        raise ValueError(f"{len(features)} crops to fit and {len(others)} to choose the ridge on: both need some")
    chosen = _moments_of(features).ridge(_moments_of(others))
    both = _moments_of(features, others)
    found = both.ridge(both, strengths=[chosen.strength])
    return PositionPredictor(found.weight.T, found.bias)


def _moments_of(*parts: Tensor) -> Moments:
    moments = Moments.like(parts[0][:BLOCK])
    for part in parts:
        for block in part.split(BLOCK):
            moments.add(block)
    return moments
