"""A study as a picture: every column by rung with each seed's number, then curves over the slices of the feature."""

import textwrap
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes

from franca.eval.figures.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, figure, head_line
from studies.config import BETTER, ColumnConfig, CurveConfig, StudyConfig
from studies.results import StudyResults, mean_and_spread, slices_of

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
ABREAST = 3  # panels
PANEL, LINE, CHARACTER = 3.9, 0.27, 0.07  # inches: width, a row's height, width of a label's character
TITLE = 34  # characters of a panel's title in a line
LEGEND = 0.085  # of a panel's height, for each of its lines
LEAST_SPAN = 0.05  # share of its largest number that an axis spans at least, so that what hardly differs looks alike


def draw(path: Path, study: StudyConfig, results: StudyResults) -> bool:
    """Write the picture; False, and no file, where there is no number yet."""
    columns = {key: column for key, column in study.columns.items() if any(_shown(study, results, key))}
    curves = [curve for curve in study.curves if results.lines(curve)]
    if not columns:
        return False
    rungs = [name for name in study.rungs if any(results.by_slice(name, key) for key in columns)]
    count = len(columns) + len(curves)
    abreast = 2 if count == 4 else min(count, ABREAST)
    down = -(-count // abreast)
    longest = max(len(study.rungs[name].label or name) for name in rungs)
    high = 1.0 + down * (1.3 + LINE * max(len(rungs), 5))  # with two lines of title
    with figure(path, PANEL * abreast + CHARACTER * longest, high) as drawn:
        head_line(drawn, f"{study.title} (dots: seeds, bars: their mean, arrows: where better lies)")
        places = drawn.subplots(down, abreast, squeeze=False).flatten()
        for place in places[count:]:
            place.set_visible(False)
        for number, (axis, (key, column)) in enumerate(zip(places, columns.items(), strict=False)):
            _by_rung(axis, study, results, rungs, key, column, named=number % abreast == 0)
        for axis, curve in zip(places[len(columns) :], curves, strict=False):
            _over_slices(axis, study, results, curve)
    return True


def _shown(study: StudyConfig, results: StudyResults, key: str) -> Iterator[dict[int, float]]:
    return (results.shown(name, key, study.columns[key]) for name in study.rungs)


def _by_rung(
    axis: Axes,
    study: StudyConfig,
    results: StudyResults,
    rungs: list[str],
    key: str,
    column: ColumnConfig,
    named: bool,
) -> None:
    """A line for each rung, the first on top: dots are seeds, a bar their mean."""
    heights = range(len(rungs), 0, -1)
    for height, name in zip(heights, rungs, strict=True):
        values = results.shown(name, key, column)
        if values:
            mean, _ = mean_and_spread(values)
            axis.plot([mean, mean], [height - 0.32, height + 0.32], color=BLUE, linewidth=2.5)
            axis.plot(list(values.values()), [height] * len(values), "o", color=VERMILION, markersize=4, alpha=0.75)
    axis.set_title(textwrap.fill(f"{column.title}{BETTER[column.better]}", TITLE), fontsize=11)
    labels = [study.rungs[name].label or name for name in rungs] if named else [""] * len(rungs)
    axis.set_yticks(list(heights), labels, color=INK)
    axis.set_ylim(0.4, len(rungs) + 0.6)
    axis.grid(axis="y", color=FAINT)
    axis.margins(x=0.12)
    low, high = axis.get_xlim()
    lacking = LEAST_SPAN * max(abs(low), abs(high)) - (high - low)
    if lacking > 0:
        axis.set_xlim(low - lacking / 2, high + lacking / 2)


def _over_slices(axis: Axes, study: StudyConfig, results: StudyResults, curve: CurveConfig) -> None:
    lines = results.lines(curve)
    slices = slices_of(lines)
    for (name, by_slice), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        places = [slices.index(slice_) for slice_ in by_slice]
        means, spreads = zip(*(mean_and_spread(values) for values in by_slice.values()), strict=True)
        bars = [spread or 0.0 for spread in spreads]
        axis.errorbar(places, means, bars if any(bars) else None, color=colour, marker="o", markersize=4.5, capsize=2.5,
                      label=study.rungs[name].label or name)  # fmt: skip
    axis.set_xticks(range(len(slices)), slices)
    axis.set_title(curve.title, fontsize=11)
    low, high = axis.get_ylim()
    axis.set_ylim(low - LEGEND * len(lines) * (high - low), high)  # room for the legend
    axis.legend(loc="lower left", fontsize=8.5)
