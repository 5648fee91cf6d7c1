"""One look for all figures: light background, readable text, colours that colour-blind readers can tell apart."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
ORANGE, SKY = "#E69F00", "#56B4E9"
INK, MUTED, FAINT, PAPER = "#1F2933", "#66727F", "#DDE2E7", "#FFFFFF"
LEVEL_COLOURS = (SKY, ORANGE, GREEN, VERMILION, BLUE)  # narrowest level first
DPI = 160

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture everywhere
    "font.size": 10.5,
    "text.color": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "figure.constrained_layout.h_pad": 0.11,
    "figure.constrained_layout.w_pad": 0.09,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.0,
    "axes.edgecolor": "#B8C1CA",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height inches in this style, written to ``path`` at the end; no global state of pyplot."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        # no date, no version: the same numbers give the same file
        drawn.savefig(path, dpi=DPI, metadata={"Software": None})


def head_line(drawn: Figure, text: str, y: float | None = None) -> None:
    """The title of a whole figure, at its upper left."""
    place: dict[str, Any] = {} if y is None else {"y": y, "va": "top"}
    drawn.suptitle(text, x=0.012, ha="left", fontsize=12, fontweight="bold", **place)


def image_grid(
    path: Path,
    rows: Mapping[str, Sequence[NDArray[Any]]],
    title: str,
    column_titles: Sequence[str] = (),
    width: float = 7.6,
) -> None:
    """One named row of RGB images (h, w, 3) in [0, 1] after another, columns aligned; ``width`` inches over all."""
    columns = max(len(images) for images in rows.values())
    label = 0.25 + 0.088 * max(len(line) for name in rows for line in name.split("\n"))
    cell = (width - label) / columns
    head = 0.42 + (0.22 if column_titles else 0)
    with figure(path, width, head + len(rows) * cell) as drawn:
        drawn.set_layout_engine("none")
        head_line(drawn, title, y=1 - 0.1 / drawn.get_figheight())
        axes = drawn.subplots(
            len(rows), columns, squeeze=False,
            gridspec_kw={"left": label / width, "right": 0.995, "bottom": 0.01, "top": 1 - head / drawn.get_figheight(),
                         "wspace": 0.05, "hspace": 0.05},
        )  # fmt: skip
        for row, (name, images) in zip(axes, rows.items(), strict=True):
            for axis in row:
                axis.set_axis_off()
            for axis, image in zip(row, images, strict=False):
                axis.imshow(np.clip(image, 0, 1), aspect="equal")
            row[0].text(-0.07, 0.5, name, transform=row[0].transAxes, ha="right", va="center", linespacing=1.35)
        for axis, heading in zip(axes[0], column_titles, strict=False):
            axis.set_title(heading, fontsize=9, fontweight="normal", loc="center", pad=4, color=MUTED)
