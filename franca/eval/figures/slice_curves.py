"""Every score of an evaluation over the slices of the feature, d, d/2 … (paper Fig. 4)."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from franca.eval.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure, head_line
from franca.eval.result import settings_text

Record = Mapping[str, Any]
COLOURS = (BLUE, VERMILION, SKY, ORANGE, GREEN, PURPLE)
MOST_LINES = 4  # of a panel, before each value of the first setting gets one of its own
ABREAST = 2  # panels
ROOM = 1.12  # of the axis above its highest point


def slice_figure(path: Path, records: Sequence[Record], title: str) -> bool:
    """Draw records of several slices, widest first; False, and no file, where there are fewer than two slices."""
    slices = list(dict.fromkeys(record["slice"] for record in records))
    if len(slices) < 2:
        return False
    panels = _panels(records)
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    across, down = min(ABREAST, len(panels)), -(-len(panels) // ABREAST)
    with figure(path, 7.6, 1.3 + 2.6 * down) as drawn:
        head_line(drawn, title)
        places = drawn.subplots(down, across, squeeze=False).flatten()
        for place in places[len(panels) :]:
            place.set_visible(False)
        for axis, (name, lines) in zip(places, panels.items(), strict=False):
            axis.set_title(name, fontsize=11)
            _draw(axis, lines, slices, colours)
            alike = [record["value"] for record in records if record["metric"] == _first(lines)["metric"]]
            if min(alike) >= 0:
                axis.set_ylim(0, ROOM * max(alike) or 1.0)
        handles = {
            name: handle for axis in places for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        if set(handles) != {""}:
            drawn.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return True


def _panels(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Title of a panel -> name of a line -> its records."""
    crowded = len({tuple(record["settings"].items()) for record in records}) > MOST_LINES
    panels: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        settings = dict(record["settings"])
        title = [record["metric"]]
        title += [f"{record['data']} {record['split']}"] if record["elsewhere"] else []
        if crowded and settings:
            first = next(iter(settings))
            title.append(f"{first}={settings.pop(first)}")
        lines = panels.setdefault(", ".join(title), {})
        lines.setdefault(settings_text(settings), []).append(record)
    return panels


def _draw(axis: Axes, lines: Mapping[str, Sequence[Record]], slices: Sequence[str], colours: Mapping[str, str]) -> None:
    for name, records in lines.items():
        spreads = [record["spread"] or 0.0 for record in records]
        axis.errorbar([slices.index(record["slice"]) for record in records], [record["value"] for record in records],
                      spreads if any(spreads) else None, color=colours[name], marker="o", markersize=4.5, capsize=2.5,
                      label=name)  # fmt: skip
    axis.set_xticks(range(len(slices)), slices)
    axis.set_xlim(-0.3, len(slices) - 0.7)
    axis.set_ylabel(_first(lines)["unit"])


def _first(lines: Mapping[str, Sequence[Record]]) -> Record:
    return next(iter(lines.values()))[0]
