"""The picture of a reproduction: this run over the recorded band, a panel for each quantity."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from franca.eval.figures.curves import LOSS_PANELS, SCORE_NAMES
from franca.eval.figures.style import BLUE, MUTED, SKY, VERMILION, figure, head_line
from franca.reproduce.comparison import Agreement
from franca.reproduce.record import Record
from franca.reproduce.report import Outcome

PANEL = (3.8, 2.25)  # inches
COLUMNS = 2


def draw(path: Path, outcome: Outcome) -> None:
    """Write the PNG. Raises OSError."""
    record = outcome.record
    found = {agreement.quantity: agreement for agreement in outcome.agreements}
    rows = -(-len(record.tolerances) // COLUMNS)
    with figure(path, COLUMNS * PANEL[0], rows * PANEL[1] + 0.9) as drawn:
        axes = drawn.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axis, name in zip(axes, record.tolerances, strict=False):
            _panel(axis, record, name, found.get(name), outcome.steps)
        for axis in axes[len(record.tolerances) :]:
            axis.set_axis_off()
        for axis in axes[len(record.tolerances) - COLUMNS : len(record.tolerances)]:
            axis.set_xlabel("step")
        head_line(drawn, f"{record.recipe}, seed {outcome.seed}{outcome.part}: {outcome.answer}")
        handles, names = axes[0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=len(names))


def _panel(axis: Axes, record: Record, name: str, agreement: Agreement | None, steps: int) -> None:
    recorded = record.steps(name)
    mean, tolerance = [record.mean(name, step) for step in recorded], record.tolerances[name]
    low, high = ([m + sign * tolerance[step] for m, step in zip(mean, recorded, strict=True)] for sign in (-1, 1))
    axis.fill_between(recorded, low, high, color=SKY, alpha=0.35, linewidth=0, label="recorded mean ± tolerance")
    for number, curve in enumerate(record.seeds.values()):
        values = [float(curve[name][step] or 0.0) for step in recorded]
        axis.plot(recorded, values, color=BLUE, linewidth=0.7, alpha=0.7, label=None if number else "recorded seeds")
    if agreement is not None:
        finite = [(point.step, point.now) for point in agreement.points if point.now is not None]
        axis.plot(
            *zip(*finite, strict=True), color=VERMILION, marker="o", markersize=3, linewidth=1.4, label="this run"
        )
    axis.set_title(_title(name) + (": differs" if agreement is not None and agreement.differs else ""), fontsize=11)
    axis.set_xlim(0, steps * 1.02)
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    if agreement is None:
        axis.annotate("not reached", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)


def _title(name: str) -> str:
    if name in LOSS_PANELS:
        return LOSS_PANELS[name][0]
    feature, _, k = name.removeprefix("knn_").partition("@")
    return f"k-NN, {SCORE_NAMES.get(feature, feature)}, k = {k} (%)"
