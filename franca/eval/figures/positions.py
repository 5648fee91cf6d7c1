"""What patch features tell about position, before and after: clusters by place (paper Fig. 6), predicted places."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from franca.eval.figures.style import BLUE, FAINT, INK, MUTED, VERMILION, figure, head_line
from franca.eval.protocols.position import PositionScore, grid_positions
from franca.eval.protocols.position_entropy import PositionEntropy

COLOURS = (VERMILION, BLUE)  # of the two sets of features that a figure compares
BINS, MARGIN = 40, 0.02  # of the histogram, and beside it
BRIGHTEST = 0.99  # quantile over all maps from which on a cell is fully bright


def entropy_figure(path: Path, entropies: Mapping[str, PositionEntropy], title: str) -> None:
    """Histogram of entropy / expected entropy over clusters, for two named sets of features (Fig. 6, top right)."""
    _check(entropies)
    ratios = {name: entropy.ratio[entropy.size > 1].numpy() for name, entropy in entropies.items()}
    lowest, highest = min(ratio.min() for ratio in ratios.values()), max(ratio.max() for ratio in ratios.values())
    edges = np.linspace(min(lowest, 0.9) - MARGIN, max(highest, 1.0) + MARGIN, BINS + 1)
    with figure(path, 7.6, 3.9) as drawn:
        head_line(drawn, title)
        axis = drawn.subplots()
        for colour, (name, ratio) in zip(COLOURS, ratios.items(), strict=False):
            share = np.histogram(ratio, edges)[0] / len(ratio)
            mean = entropies[name].mean
            axis.stairs(share, edges, fill=True, alpha=0.28, color=colour)
            axis.stairs(share, edges, color=colour, linewidth=1.8, label=f"{name}: mean {mean:.3f}")
            axis.axvline(mean, color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
        axis.axvline(1, color=INK, linewidth=1.2, linestyle=(0, (1, 2)), label="chance: position plays no part")
        axis.set_xlabel("entropy of patch positions in a cluster / expected by chance")
        axis.set_ylabel("share of clusters")
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.set_xlim(edges[0], edges[-1])
        axis.set_ylim(bottom=0)
        drawn.legend(loc="outside lower center", ncols=3)


def cluster_maps_figure(path: Path, entropies: Mapping[str, PositionEntropy], title: str, shown: int = 6) -> None:
    """Where the clusters of lowest entropy lie, as many for each named set of features (Fig. 6, A).

    All maps share one scale: how often a patch of the cluster lies in a cell, 1 where it is as often as if spread
    evenly. The name of a single set is left to the title.
    """
    _check(entropies)
    chosen = {name: most_placed(entropy, shown) for name, entropy in entropies.items()}
    maps = {name: frequency(entropies[name], clusters) for name, clusters in chosen.items()}
    brightest = max(2.0, float(np.quantile(np.concatenate(list(maps.values())), BRIGHTEST)))
    with figure(path, 7.6, 0.6 + 1.5 * len(maps)) as drawn:
        head_line(drawn, title)
        axes = drawn.subplots(len(maps), shown, squeeze=False)
        for row, (name, entropy) in zip(axes, entropies.items(), strict=True):
            for axis in row:
                axis.set_axis_off()
            for axis, cluster, shares in zip(row, chosen[name], maps[name], strict=False):
                image = axis.imshow(shares, cmap="inferno", vmin=0, vmax=brightest)
                axis.set_title(f"{entropy.ratio[cluster]:.2f} of chance\n{entropy.size[cluster]:,} patches",
                               fontsize=8.5, fontweight="normal", loc="center", pad=3, color=MUTED)  # fmt: skip
            if len(maps) > 1:
                row[0].text(-0.12, 0.5, name, transform=row[0].transAxes, ha="right", va="center", rotation=90)
        bar = drawn.colorbar(image, ax=axes, shrink=0.85, aspect=22, pad=0.02)
        bar.set_label("even spread: 1", labelpad=6)
        bar.outline.set_visible(False)


def prediction_figure(path: Path, scores: Mapping[str, PositionScore], title: str) -> None:
    """The grid of patches as it is predicted: each cell at the mean of what is predicted for its patches.

    Features that tell the position give back the square; features that don't give one point at its centre.
    """
    with figure(path, 3.7 * len(scores), 4.5) as drawn:
        head_line(drawn, title)
        for axis, (name, score) in zip(drawn.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
            _deformed_grid(axis, score)
            axis.set_title(name)
            axis.set_xlabel(f"rmse {score.rmse:.3f} of a side (chance {score.chance_rmse:.3f}), R² {score.r2:.2f}")


def most_placed(entropy: PositionEntropy, count: int) -> list[int]:
    """The clusters of lowest entropy / expected, lowest first, of half the mean size or more: a map needs patches."""
    size = entropy.size
    large = (size >= size[size > 1].double().mean() / 2) & (size > 1)
    candidates = large.nonzero().flatten()
    return candidates[entropy.ratio[candidates].argsort(stable=True)][:count].tolist()


def frequency(entropy: PositionEntropy, clusters: Sequence[int]) -> NDArray[Any]:
    """How often a cluster's patches lie in each cell, as a multiple of an even spread, (clusters, h, w)."""
    counts = entropy.counts[list(clusters)].double()
    return (counts / counts.mean(dim=(1, 2), keepdim=True)).numpy()


def _check(entropies: Mapping[str, PositionEntropy]) -> None:
    for name, entropy in entropies.items():
        if not (entropy.size > 1).any():
            raise ValueError(f"none of the {len(entropy.size)} clusters of {name!r} holds two patches: ask for fewer")


def _deformed_grid(axis: Axes, score: PositionScore) -> None:
    """Rows and columns of the predicted grid over the true ones; a cell's colour tells where it truly lies."""
    h, w = score.predicted.shape[:2]
    true = grid_positions(h, w).numpy()
    for grid, colour, width in ((true.reshape(h, w, 2), FAINT, 0.8), (score.predicted.numpy(), MUTED, 0.9)):
        for line in (*grid, *grid.transpose(1, 0, 2)):
            axis.plot(line[:, 1], line[:, 0], color=colour, linewidth=width, zorder=1)
    row, column = true.T
    colours = np.stack([0.85 * row + 0.1, 0.45 - 0.25 * row + 0.25 * column, 0.9 * column + 0.05], axis=1)
    places = score.predicted.numpy().reshape(-1, 2)
    axis.scatter(places[:, 1], places[:, 0], c=colours, s=min(30, 2000 / len(places)), zorder=2, linewidths=0)
    axis.set(xlim=(-0.06, 1.06), ylim=(1.06, -0.06), aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
