"""Images in named rows and aligned columns; many images go into several blocks, one below the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from franca.eval.figures.style import MUTED, figure, head_line

Image = NDArray[Any]  # RGB in [0, 1], (h, w, 3)
WIDTH = 7.6  # inches over all
MARGIN, GAP, BLOCK_GAP = 0.04, 0.05, 0.16  # inches
TALLEST = 2.6  # inches of a row
LEGEND_LINE = 0.24  # inches


def image_grid(
    path: Path,
    rows: Mapping[str, Sequence[Image]],
    title: str,
    column_titles: Sequence[str] = (),
    columns: int = 0,
    legend: Mapping[str, Any] | None = None,
) -> None:
    """One named row of images after another, columns aligned.

    A column has the proportions of its first image; all rows of a block have one height.

    Args:
        rows: equally many images each, or fewer in a row that ends early.
        column_titles: above the first images, as many as there are columns or none.
        columns: images beside one another; the rest follows in blocks below. 0: all of them.
        legend: what colours mean, name -> colour.
    """
    count = max(len(images) for images in rows.values())
    columns = columns or count
    label = 0.2 + 0.082 * max(len(line) for name in rows for line in name.split("\n"))
    longest = max(rows.values(), key=len)
    blocks = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    heights = _row_heights([[_aspect(longest[i]) for i in block] for block in blocks], WIDTH - label - MARGIN)
    head = 0.42 + (0.22 if column_titles else 0)
    foot = MARGIN + _legend_height(legend)
    full = head + foot + BLOCK_GAP * (len(blocks) - 1)
    full += sum(len(rows) * height + GAP * (len(rows) - 1) for height in heights)
    with figure(path, WIDTH, full) as drawn:
        drawn.set_layout_engine("none")
        head_line(drawn, title, y=1 - 0.1 / full)
        top = full - head
        for block, height in zip(blocks, heights, strict=True):
            for name, images in rows.items():
                drawn.text((label - 0.08) / WIDTH, (top - height / 2) / full, name, ha="right", va="center",
                           linespacing=1.35)  # fmt: skip
                left = label
                for i in block:
                    width = height * _aspect(longest[i])
                    if i < len(images):
                        axis = _place(drawn, left, top - height, width, height)
                        axis.imshow(np.clip(images[i], 0, 1), aspect="auto")
                        if column_titles and name == next(iter(rows)) and i < columns:
                            axis.set_title(column_titles[i], fontsize=9, fontweight="normal", loc="center", pad=4,
                                           color=MUTED)  # fmt: skip
                    left += width + GAP
                top -= height + GAP
            top -= BLOCK_GAP - GAP
        if legend:
            handles = [Patch(facecolor=colour, label=name) for name, colour in legend.items()]
            drawn.legend(handles=handles, loc="lower left", ncols=_legend_columns(legend), borderaxespad=0.2,
                         handlelength=1.1, handleheight=1.1, columnspacing=1.2)  # fmt: skip


def _aspect(image: Image) -> float:
    return float(image.shape[1] / image.shape[0])


def _row_heights(aspects: Sequence[Sequence[float]], available: float) -> list[float]:
    """Height of the rows of every block, so that its images fill the width; a last, shorter block is no taller."""
    fitting = [min((available - GAP * (len(block) - 1)) / sum(block), TALLEST) for block in aspects]
    return [*fitting[:-1], min(fitting[-1], max(fitting[:-1], default=TALLEST))]


def _place(drawn: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without axes, at a place in inches."""
    across, up = drawn.get_size_inches()
    axis = drawn.add_axes((left / across, bottom / up, width / across, height / up))
    axis.set_axis_off()
    return axis


def _legend_columns(legend: Mapping[str, Any]) -> int:
    return max(1, min(len(legend), int((WIDTH - 0.2) / (0.5 + 0.085 * max(map(len, legend))))))


def _legend_height(legend: Mapping[str, Any] | None) -> float:
    return 0.15 + LEGEND_LINE * -(-len(legend) // _legend_columns(legend)) if legend else 0.0
