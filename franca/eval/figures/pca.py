"""First three principal components of patch features as colours (paper Figs. 3 and 8)."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from franca.eval.figures.gallery import image_grid
from franca.eval.protocols.projection import principal_components

CUT = 0.01  # share of the patches at either end of a component that saturates
BINS = 256  # of the histogram that Otsu's method cuts in two


@torch.no_grad()
def patch_pca(patches: Tensor) -> Tensor:
    """Colours of patches, (…, D) -> (…, 3) in [0, 1].

    One PCA over all patches of all images together, so that a colour means the same in each of them. Every component
    is signed so that its third moment is positive (the rarer side is the bright one), and stretched from its 1st to its
    99th percentile. The result is deterministic and doesn't change when the features are rotated, shifted or scaled.
    With fewer than three directions of variation the remaining colours are 0.5.
    """
    rows = patches.double().flatten(0, -2)
    projection = principal_components(rows, 3)
    scores = projection(rows)
    scores = scores * torch.where(scores.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    colours = torch.where(projection.varies.to(rows.device), _stretched(scores), 0.5)
    colours = pad(colours, (0, 3 - colours.shape[1]), value=0.5)
    return colours.float().view(*patches.shape[:-1], 3)


def shared_pca(grids: Sequence[Tensor], shown: Sequence[Tensor] | None = None) -> list[Tensor]:
    """`patch_pca` over images of different sizes, (h, w, D) each -> (h, w, 3) each.

    Args:
        shown: (h, w) bool each: the patches that count. The others are NaN.
    """
    chosen = [torch.ones(grid.shape[:2], dtype=torch.bool) for grid in grids] if shown is None else shown
    rows = torch.cat([grid[mask] for grid, mask in zip(grids, chosen, strict=True)])
    parts = (patch_pca(rows) if len(rows) else rows.new_zeros(0, 3)).split([int(mask.sum()) for mask in chosen])
    colours = [torch.full((*mask.shape, 3), torch.nan) for mask in chosen]
    for image, mask, part in zip(colours, chosen, parts, strict=True):
        image[mask] = part
    return colours


def resembling(colours: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The same colours (h, w, 3) per image, their channels in the order and of the sign that resembles others most.

    Components of slices have signs and places of their own; so a thing that they share keeps its colour.
    """
    own, other = (torch.cat([one.flatten(0, 1) for one in images]).double() for images in (colours, others))
    own, other = ((one - one.mean(dim=0)) / one.std(dim=0).clamp_min(1e-12) for one in (own, other))
    alike = other.T @ own / len(own)  # (3, 3), of the channels of the others and of their own
    order = list(
        max(permutations(range(3)), key=lambda order: sum(float(alike[i, j].abs()) for i, j in enumerate(order)))
    )
    flipped = alike[range(3), order] < 0
    return [torch.where(flipped, 1 - image[..., order], image[..., order]) for image in colours]


@torch.no_grad()
def foreground(grids: Sequence[Tensor], threshold: float | None = None) -> list[Tensor]:
    """Patches on the upper side of the first principal component, (h, w, D) each -> (h, w) bool each (Fig. 8).

    The component is that of all patches of all images together. Its upper side is the one that is rarer along the
    borders of the images than inside; what is rotated, shifted or scaled gives the same patches.

    Args:
        threshold: from 0 (the component's 1st percentile) to 1 (its 99th); None: where Otsu's method cuts, which makes
            both sides as even in themselves as can be.
    """
    rows = torch.cat([grid.double().flatten(0, 1) for grid in grids])
    projection = principal_components(rows, 1)
    if not projection.varies.any():
        return [torch.ones(grid.shape[:2], dtype=torch.bool) for grid in grids]
    border = torch.cat([_border(*grid.shape[:2]).flatten() for grid in grids])
    score = projection(rows)
    # all patches on the border: the rarer side, as in `patch_pca`
    lean = score[~border].mean() - score[border].mean() if not border.all() else score.pow(3).sum()
    level = _stretched(score if lean >= 0 else -score)[:, 0]
    cut = otsu(level) if threshold is None else threshold
    parts = (level > cut).split([grid.shape[0] * grid.shape[1] for grid in grids])
    return [part.view(grid.shape[:2]) for part, grid in zip(parts, grids, strict=True)]


def otsu(values: Tensor) -> float:
    """The threshold that leaves the least variance on both sides of it together, for values in [0, 1] (Otsu, 1979)."""
    counts = torch.histc(values.double(), BINS, 0, 1)
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    below, total = counts.cumsum(0), counts.sum()
    mean_below, mean = (counts * centres).cumsum(0), (counts * centres).sum()
    between = (mean * below / total - mean_below).square() / (below * (total - below)).clamp_min(1e-12)
    best = (between == between.max()).nonzero().flatten().double().mean()  # the middle of a flat top
    return (best.item() + 1) / BINS


def pca_figure(path: Path, images: Sequence[NDArray[Any]], patches: dict[str, Tensor], title: str) -> None:
    """Images (H, W, 3) in [0, 1] above the PCA colours of each named set of patch features (B, h, w, D)."""
    rows: dict[str, Sequence[NDArray[Any]]] = {"image": images}
    rows |= {name: list(patch_pca(features).numpy()) for name, features in patches.items()}
    image_grid(path, rows, title)


def _stretched(scores: Tensor) -> Tensor:
    """Every column from its 1st to its 99th percentile, cut to [0, 1]."""
    low, high = torch.quantile(_at_most(scores), torch.tensor([CUT, 1 - CUT], dtype=scores.dtype), dim=0)
    return ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def _border(h: int, w: int) -> Tensor:
    inside = torch.zeros(h, w, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return ~inside


def _at_most(rows: Tensor, limit: int = 1 << 20) -> Tensor:
    """Evenly spaced rows, as many as torch.quantile takes."""
    return rows[:: len(rows) // limit + 1]
