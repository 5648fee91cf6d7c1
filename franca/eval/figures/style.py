"""One look for all figures: light background, readable text, colours that colour-blind readers can tell apart."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's palette
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
ORANGE, SKY = "#E69F00", "#56B4E9"
INK, MUTED, FAINT, PAPER = "#1F2933", "#66727F", "#DDE2E7", "#FFFFFF"
LEVEL_COLOURS = (SKY, ORANGE, GREEN, VERMILION, BLUE)  # narrowest level first
DPI = 160
HEAD = 9.0  # characters of a head line in an inch

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
    """The title of a whole figure, at its upper left, in as many lines as its width needs."""
    text = textwrap.fill(text, int(HEAD * drawn.get_figwidth()))
    place: dict[str, Any] = {} if y is None else {"y": y, "va": "top"}
    drawn.suptitle(text, x=0.012, ha="left", fontsize=12, fontweight="bold", **place)
