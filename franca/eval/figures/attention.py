"""Where the class token looks: attention of the last block, head by head and on average (paper Fig. 10)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from franca.eval.figures.gallery import image_grid

Maps = Iterable[Tensor]  # one per image: a list, or a tensor whose first dimension counts images
BRIGHTEST = 0.99  # quantile of a map from which on it is drawn fully bright


def heat(attention: Tensor) -> NDArray[Any]:
    """Colours of an attention map, (h, w) -> (h, w, 3) in [0, 1], one colour per patch.

    Its own minimum is dark, its 99th percentile is bright: a map shows where, not how much. The image is not mixed in:
    its outlines would make any map look as if it followed them.
    """
    values = attention.float().numpy()
    low, high = values.min(), np.quantile(values, BRIGHTEST)
    return matplotlib.colormaps["inferno"](np.clip((values - low) / max(high - low, 1e-12), 0, 1))[..., :3]


def attention_figure(path: Path, images: Sequence[NDArray[Any]], attention: Mapping[str, Maps], title: str) -> None:
    """Images (H, W, 3) in [0, 1] above their attention; each named row holds a map (h, w) per image."""
    rows: dict[str, Sequence[NDArray[Any]]] = {"image": images}
    for name, maps in attention.items():
        rows[name] = [heat(one) for one in maps]
    image_grid(path, rows, title)


def attention_rows(attention: Maps, heads: int = 3) -> dict[str, list[Tensor]]:
    """The mean over heads and the first few heads, (H, h, w) per image -> named rows of (h, w) per image."""
    shown = min(heads, *(len(one) for one in attention))
    rows = {"mean of heads": [one.mean(dim=0) for one in attention]}
    return rows | {f"head {i + 1}": [one[i] for one in attention] for i in range(shown)}
