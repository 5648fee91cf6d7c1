"""Curves of a run: losses per term, health, scores over steps and over slice widths."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from franca.eval.figures.style import BLUE, GREEN, LEVEL_COLOURS, MUTED, ORANGE, PURPLE, VERMILION, figure

Lines = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl
LOSS_PANELS = {
    "loss": ("total", BLUE),
    "crop_local": ("crop loss, local to global", GREEN),
    "crop_global": ("crop loss, global to global", VERMILION),
    "patch": ("patch loss (masked patches)", PURPLE),
    "koleo": ("KoLeo (spread of the features)", ORANGE),
    "lr": ("learning rate", MUTED),
}
HEALTH_PANELS = {
    "assignment_information": "assignment information",
    "prototypes_used": "prototypes in use in a batch",
    "effective_rank": "effective rank of the features",
    "agreement": "teacher and student agree",
}
SCORE_NAMES = {"cls": "class token", "patch": "mean patch"}


def series(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, where it was logged and finite."""
    pairs = [(line["step"], float(line[key])) for line in lines if isinstance(line.get(key), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average; near the ends the window shrinks evenly on both sides, so that nothing is shifted."""
    averaged = []
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        averaged.append(sum(part) / len(part))
    return averaged


def uniform_losses(
    prototypes: Mapping[str, Sequence[int]],
    local_count: int,
    masked_share: float,
    crop_weight: float = 1.0,
    patch_weight: float = 1.0,
) -> dict[str, float]:
    """Value of each cross-entropy term for a student that finds all prototypes equally likely.

    Every cross-entropy is then log K, summed over levels; see `PretrainingObjective` for the factors.

    Args:
        prototypes: counts per level for ``dino_head`` and ``ibot_head``.
        local_count: local crops per image. masked_share: of the global crops. Weights: as in the objective.
    """
    crop, patch = (sum(math.log(count) for count in prototypes[head]) for head in ("dino_head", "ibot_head"))
    n = 2 + 2 * local_count
    local, global_ = 2 * local_count * crop, 2 * crop
    return {
        "crop_local": crop_weight * local / n,
        "crop_global": crop_weight * global_ / n,
        "patch": patch_weight * masked_share * patch,
    }


def loss_figure(path: Path, lines: Lines, uniform: Mapping[str, float]) -> None:
    """Total, every term and the learning rate over steps. ``uniform``: values marked as "all prototypes alike"."""
    with figure(path, 7.6, 6.4) as drawn:
        axes = drawn.subplots(3, 2).flatten()
        for axis, (key, (name, colour)) in zip(axes, LOSS_PANELS.items(), strict=True):
            axis.set_title(name, fontsize=11)
            steps, values = series(lines, key)
            if key == "lr":
                axis.plot(steps, values, color=colour)
            else:
                _noisy_line(axis, steps, values, colour)
            if key in uniform:
                _reference_line(axis, uniform[key], "all prototypes alike", values)
            _count_steps(axis, named=axis in axes[-2:])


def health_figure(path: Path, lines: Lines) -> bool:
    """What the monitor read over steps, per Matryoshka level where it has levels, narrowest first.

    False, and no file, if it took no reading.
    """
    if not series(lines, "effective_rank")[0]:
        return False
    with figure(path, 7.6, 4.9) as drawn:
        axes = drawn.subplots(2, 2).flatten()
        for axis, (key, name) in zip(axes, HEALTH_PANELS.items(), strict=True):
            axis.set_title(name, fontsize=11)
            levels = sorted({k for line in lines for k in line if k.startswith(f"{key}/")}, key=_level)
            for number, (level, colour) in enumerate(zip(levels, cycle(LEVEL_COLOURS), strict=False)):
                axis.plot(*series(lines, level), color=colour, label=_level_name(number, len(levels)))
            if not levels:
                axis.plot(*series(lines, key), color=BLUE)
            axis.set_ylim(bottom=0)
            _count_steps(axis, named=axis in axes[-2:])
        handles, names = axes[0].get_legend_handles_labels()
        if handles:
            drawn.legend(handles, names, loc="outside lower center", ncols=len(names))
    return True


def score_figure(path: Path, lines: Lines) -> bool:
    """k-NN accuracy during training over steps; False, and no file, if fewer than two evaluations were logged."""
    keys = sorted({key for line in lines for key in line if key.startswith("knn_")})
    if not keys or len(series(lines, keys[0])[0]) < 2:
        return False
    with figure(path, 7.6, 3.6) as drawn:
        axis = drawn.subplots()
        for key, colour in zip(keys, (BLUE, VERMILION, GREEN, PURPLE), strict=False):
            feature, k = key.removeprefix("knn_").split("@")
            steps, values = series(lines, key)
            name = f"{SCORE_NAMES.get(feature, feature)}, k = {k}: {values[-1]:.1f} % at the end"
            axis.plot(steps, values, color=colour, marker="o", markersize=4.5, label=name)
        axis.set(title="k-NN accuracy in training", ylabel="%")
        _count_steps(axis)
        drawn.legend(loc="outside lower center", ncols=2)
    return True


def _count_steps(axis: Axes, named: bool = True) -> None:
    """Whole steps from 0 along the axis, called so where it is the lowest."""
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axis.set_xlabel("step" if named else "")


def _noisy_line(axis: Axes, steps: list[int], values: list[float], colour: str) -> None:
    axis.plot(steps, values, color=colour, alpha=0.28, linewidth=1)
    axis.plot(steps, smooth(values, max(len(values) // 12, 1)), color=colour)


def _reference_line(axis: Axes, value: float, text: str, values: list[float]) -> None:
    """A dashed line with its name, unless it lies so far off that the curve would become flat."""
    if not values or not 0.3 * max(values) < value < 3 * max(values):
        return
    axis.axhline(value, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
    axis.annotate(text, (1, value), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", va="bottom", color=MUTED, fontsize=8.5)  # fmt: skip
    low, high = axis.get_ylim()
    axis.set_ylim(low, max(high, value + 0.12 * (value - low)))


def _level(key: str) -> int:
    return int(key.split("/")[1])


def _level_name(number: int, levels: int) -> str:
    return "widest level" if number == levels - 1 else "narrowest level" if number == 0 else f"level {number + 1}"
