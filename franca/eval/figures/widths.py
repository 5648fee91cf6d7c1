"""k-NN accuracy over nested slices of the feature: d, d/2 … d/64 (paper Fig. 4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from franca.eval.figures.style import BLUE, GREEN, MUTED, ORANGE, SKY, VERMILION, figure

LOOKS = (
    {"color": BLUE, "marker": "o"},
    {"color": SKY, "marker": "s"},
    {"color": VERMILION, "marker": "o", "linestyle": (0, (5, 2))},
    {"color": ORANGE, "marker": "s", "linestyle": (0, (5, 2))},
)


def width_figure(
    path: Path,
    scores: Mapping[str, Mapping[int, float]],
    marks: Mapping[str, float],
    trained_widths: Sequence[int],
    ylabel: str,
) -> None:
    """Percentages by width, one line per name, at most four.

    Args:
        scores: name -> {width: percent}; all with the same widths.
        marks: name -> percent of what has no width (raw pixels, chance); horizontal lines.
        trained_widths: widths that had a head of their own in training; narrower ones are shaded.
    """
    widths = sorted(next(iter(scores.values())))[::-1]
    places = range(len(widths))
    with figure(path, 7.6, 4.3) as drawn:
        axis = drawn.subplots()
        for look, (name, by_width) in zip(LOOKS, scores.items(), strict=False):
            axis.plot(places, [by_width[width] for width in widths], label=name, markersize=5.5, **look)  # type: ignore[arg-type]
        for colour, (name, value) in zip((GREEN, MUTED), marks.items(), strict=False):
            axis.axhline(value, color=colour, linewidth=1.6, linestyle=(0, (1, 2)), label=f"{name}: {value:.0f} %")
        _shade_untrained(axis, widths, trained_widths)
        axis.set_xticks(list(places), [_tick(width, widths[0]) for width in widths])
        axis.set_title("k-NN with the first features only")
        axis.set_xlabel("features used")
        axis.set_ylabel(ylabel)
        axis.set_xlim(-0.4, len(widths) - 0.6)
        axis.set_ylim(0, min(105, 1.12 * max([*marks.values(), *(v for s in scores.values() for v in s.values())])))
        drawn.legend(loc="outside lower center", ncols=3)


def _tick(width: int, dim: int) -> str:
    return f"d\n{dim}" if width == dim else f"d/{round(dim / width)}\n{width}"


def _shade_untrained(axis: Axes, widths: Sequence[int], trained: Sequence[int]) -> None:
    """Grey out the slices that no head ever saw."""
    beyond = [place for place, width in enumerate(widths) if trained and width < min(trained)]
    if beyond:
        axis.axvspan(beyond[0] - 0.5, len(widths) - 0.6, color="#EEF1F4", zorder=0)
        axis.text(beyond[0] - 0.42, 0.98, "no head in training", transform=axis.get_xaxis_transform(),
                  va="top", color=MUTED, fontsize=9)  # fmt: skip
