"""Maps over images: enlarged to the pixels that they stand for, mixed in, labels as colours."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[Any]  # RGB in [0, 1], (H, W, 3)
# colours that differ most, first; after these, hues a golden angle apart
DISTINCT = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#AA4499", "#F0E442", "#882255", "#44AA99",
            "#999933", "#332288", "#CC6677", "#117733", "#88CCEE", "#661100", "#6699CC")  # fmt: skip
GOLDEN = 0.61803398875
NOTHING = 0.93  # grey of what is left out


def displayed(pixels: Tensor) -> Image:
    """uint8 (C, H, W) as an RGB image in [0, 1]: one channel is grey, of more than three the first three."""
    colours = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    image: Image = (colours.permute(1, 2, 0).float() / 255).numpy()
    return image


def enlarged(grid: Tensor, height: int, width: int) -> Image:
    """A map of patches, (h, w) or (h, w, 3) -> (height, width, …): every pixel has the value of its patch."""
    rows = (torch.arange(height) * grid.shape[0] // height).tolist()
    columns = (torch.arange(width) * grid.shape[1] // width).tolist()
    return grid[rows][:, columns].numpy()


def mixed(image: Image, colours: Image, opacity: float, left_out: float | None = NOTHING) -> Image:
    """Colours over an image (H, W, 3), both in [0, 1].

    Args:
        opacity: 1 hides the image, 0 the colours.
        left_out: grey of the pixels whose colours are NaN; None: the image shows there as it is.
    """
    shown = ~np.isnan(colours).any(axis=-1, keepdims=True)
    over = (1 - opacity) * image + opacity * np.nan_to_num(colours)
    rest = image if left_out is None else np.full_like(image, left_out)
    return np.where(shown, over, rest)


def label_colour(number: int) -> tuple[float, float, float]:
    """RGB of a class or cluster, the same in every picture."""
    if number < len(DISTINCT):
        return matplotlib.colors.to_rgb(DISTINCT[number])
    turn = number - len(DISTINCT)
    tone = np.array([turn * GOLDEN % 1, 0.45 + 0.15 * (turn % 4), 0.95 - 0.2 * (turn % 3)])
    red, green, blue = matplotlib.colors.hsv_to_rgb(tone).tolist()
    return red, green, blue


def label_colours(labels: Tensor, void: int | None = None) -> Tensor:
    """Labels as colours, (h, w) integers -> (h, w, 3); NaN where they are void."""
    palette = torch.full((int(labels.max()) + 1, 3), torch.nan)
    for number in labels.unique().tolist():
        if number != void:
            palette[number] = torch.tensor(label_colour(number))
    return palette[labels.long()]


def by_size(labels: Sequence[Tensor]) -> list[Tensor]:
    """Labels of several maps together, numbered anew: 0 is the most frequent; of equals, the one met first."""
    together = torch.cat([one.flatten() for one in labels])
    numbers, place = together.unique(return_inverse=True)
    counts = place.bincount(minlength=len(numbers))
    met = torch.full_like(counts, len(together)).scatter_reduce(0, place, torch.arange(len(together)), "amin")
    order = sorted(range(len(numbers)), key=lambda i: (-int(counts[i]), int(met[i])))
    rank = torch.empty(len(numbers), dtype=torch.int64)
    rank[torch.tensor(order)] = torch.arange(len(numbers))
    parts = rank[place].split([one.numel() for one in labels])
    return [part.view(one.shape) for part, one in zip(parts, labels, strict=True)]
