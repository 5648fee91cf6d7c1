"""Sums over patches from which every least-squares predictor of position follows, whatever was removed before it.

Legend: N = h * w patches of a crop, D width. Positions are (row, column) in [0, 1], row first (paper Sec. 2.3). Which
positions the patches have is known, so the sum of the features in each cell of the grid says all about both together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.protocols.position import chance_mse, grid_positions


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
