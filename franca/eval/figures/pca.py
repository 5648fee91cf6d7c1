"""First three principal components of patch features as colours (paper Figs. 3 and 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from franca.eval.figures.style import image_grid

CUT = 0.01  # share of the patches at either end of a component that saturates


@torch.no_grad()
def patch_pca(patches: Tensor) -> Tensor:
    """Colours of patches, (B, h, w, D) -> (B, h, w, 3) in [0, 1].

    One PCA over all patches of all images together, so that a colour means the same in each of them. Every component
    is signed so that its third moment is positive (the rarer side is the bright one), and stretched from its 1st to its
    99th percentile. The result is deterministic and doesn't change when the features are rotated, shifted or scaled.
    With fewer than three directions of variation the remaining colours are 0.5.
    """
    rows = patches.double().flatten(0, -2)
    rows = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    strongest = directions.flip(1)[:, :3]
    scores = rows @ strongest
    scores = scores * torch.where(scores.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    low, high = torch.quantile(_at_most(scores), torch.tensor([CUT, 1 - CUT], dtype=scores.dtype), dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    varies = variances.flip(0)[:3] > 1e-10 * variances.sum().clamp_min(1e-30)
    colours = torch.where(varies, colours, 0.5)
    missing = 3 - colours.shape[1]
    colours = torch.cat([colours, colours.new_full((len(colours), missing), 0.5)], dim=1)
    return colours.float().view(*patches.shape[:-1], 3)


def pca_figure(path: Path, images: Sequence[NDArray[Any]], patches: dict[str, Tensor], title: str) -> None:
    """Images (H, W, 3) in [0, 1] above the PCA colours of each named set of patch features (B, h, w, D)."""
    rows: dict[str, Sequence[NDArray[Any]]] = {"image": images}
    rows |= {name: list(patch_pca(features).numpy()) for name, features in patches.items()}
    image_grid(path, rows, title)


def _at_most(rows: Tensor, limit: int = 1 << 20) -> Tensor:
    """Evenly spaced rows, as many as torch.quantile takes."""
    return rows[:: len(rows) // limit + 1]
