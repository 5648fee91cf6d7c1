"""Which patches the student does not see: masks of each kind, and how often each cell is visible (paper Fig. 5)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from franca.data.masking import MASKS, MaskConfig
from franca.eval.figures.gallery import image_grid
from franca.eval.figures.style import MUTED, figure, head_line

NAMES = {"cyclic": "CyclicMask", "inverse_block": "inverse block", "block": "block", "random": "random"}
HIDDEN = 0.88  # grey value of a hidden patch


def hide(image: NDArray[Any], mask: Tensor) -> NDArray[Any]:
    """The image (H, W, 3) in [0, 1] with the masked patches of ``mask`` (h, w) turned light grey."""
    height, width = image.shape[0] // mask.shape[0], image.shape[1] // mask.shape[1]
    hidden = mask.numpy().repeat(height, axis=0).repeat(width, axis=1)[..., None]
    return np.where(hidden, HIDDEN, image[: hidden.shape[0], : hidden.shape[1]])


def masks_figure(
    path: Path, images: list[NDArray[Any]], grid: tuple[int, int], config: MaskConfig, seed: int = 0
) -> None:
    """Masks of all four kinds over images (H, W, 3), one column per image, the hidden share growing to the right.

    The first row is the kind that ``config`` names; shares are spread evenly over ``config.ratio``.
    """
    cells = grid[0] * grid[1]
    shares = torch.linspace(config.ratio[0], config.ratio[1], len(images)).tolist()
    counts = [int(cells * share) for share in shares]
    kinds = [config.kind] + [kind for kind in MASKS if kind != config.kind]
    rows = {}
    for kind in kinds:
        draws = Generator().manual_seed(seed)
        mask = MASKS[kind](grid, config.min_aspect)
        name = NAMES[kind] + ("\n(this run)" if kind == config.kind else "")
        rows[name] = [hide(image, mask(count, draws)) for image, count in zip(images, counts, strict=True)]
    headings = [f"{count} of {cells}" for count in counts]
    image_grid(path, rows, "Masks: grey patches are hidden from the student", column_titles=headings)


def visibility(kind: str, grid: tuple[int, int], n_masked: int, min_aspect: float, draws: int, seed: int = 0) -> Tensor:
    """Share of the draws in which each cell is visible, (h, w)."""
    generator = Generator().manual_seed(seed)
    mask = MASKS[kind](grid, min_aspect)
    hidden = sum(mask(n_masked, generator).float() for _ in range(draws))
    return 1 - torch.as_tensor(hidden) / draws


def visibility_figure(path: Path, grid: tuple[int, int], config: MaskConfig, draws: int = 2500) -> None:
    """Visibility of every cell over many draws at the middle of ``config.ratio``, for each kind of mask."""
    cells = grid[0] * grid[1]
    n_masked = int(cells * sum(config.ratio) / 2)
    maps = {kind: visibility(kind, grid, n_masked, config.min_aspect, draws).numpy() for kind in MASKS}
    expected = 1 - n_masked / cells
    spread = max(0.02, max(abs(shown - expected).max() for shown in maps.values()))
    with figure(path, 7.6, 2.6) as drawn:
        head_line(drawn, f"How often a patch is visible ({draws:,} draws)")
        axes = drawn.subplots(1, len(maps))
        for axis, (kind, shown) in zip(axes, maps.items(), strict=True):
            drawn_map = axis.imshow(shown, cmap="PuOr", vmin=expected - spread, vmax=expected + spread)
            axis.set_title(NAMES[kind], fontsize=10.5, pad=5)
            axis.set_xlabel(f"{100 * shown.min():.0f} to {100 * shown.max():.0f} %", color=MUTED)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
        bar = drawn.colorbar(drawn_map, ax=axes, shrink=0.82, aspect=14, pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        bar.ax.set_ylim(max(0, expected - spread), min(1, expected + spread))
        bar.outline.set_visible(False)
        bar.ax.axhline(expected, color="black", linewidth=1.2)
