"""Logistic regression on frozen features: the fine-grained data sets (paper Table 7; DINOv2, Sec. 7.3).

The strength of the L2 penalty is chosen on a validation split: the one that the data set itself sets apart, else a
held-out part of the training images, never the test set. The classifier is then fitted again on all training images.
Each strength begins at the solution of the one before; an interrupted evaluation goes on with the strength that it had
reached. The features lie in memory, on the device if it computes in the precision asked for.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from franca.distributed import is_main
from franca.eval.context import Context
from franca.eval.errors import EvalError
from franca.eval.neighbours import place_of_doubles
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.answers import Answers, answers_of, check_classes, labels_of
from franca.eval.protocols.held_out import hold_out
from franca.eval.protocols.linear_head import HeadInput, LinearHead, save_head
from franca.eval.protocols.logistic_regression import Solution, fit_logistic
from franca.eval.protocols.progress_file import ProgressFile
from franca.eval.result import Score
from franca.eval.store import ImageFeatures
from franca.eval.views import ResizeCrop

logger = logging.getLogger(__name__)

PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32}


@dataclass(frozen=True)
class LogisticConfig:
    """Settings of logistic regression, as DINOv2's evaluation has them.

    Attributes:
        weakest, strongest, strengths: least and largest C, the inverse of the penalty, and how many of them are tried,
            evenly spaced in their logarithm.
        steps: of L-BFGS, at most, for each. tolerance: largest entry of the gradient of the mean loss at which to stop.
        holdout, seed: share of the training images to choose on where the data set names none, and how they are drawn.
        mean_patch: the mean patch beside the class token.
        precision: of the fit, fp64 or fp32 (for devices that are slow in fp64).
        resize, size: shorter side of the images, and the central square that the model sees, in pixels.
    """

    weakest: float = 1e-6
    strongest: float = 1e5
    strengths: int = 45
    steps: int = 1000
    tolerance: float = 1e-7
    holdout: float = 0.1
    seed: int = 0
    mean_patch: bool = False
    precision: str = "fp64"
    resize: int = 224
    size: int = 224

    def __post_init__(self) -> None:
        if not 0 < self.weakest <= self.strongest or self.strengths < 1:
            raise ValueError(
                f"weakest={self.weakest}, strongest={self.strongest}, strengths={self.strengths}: C must be above 0, "
                "and one at least be tried"
            )
        if self.steps < 1 or self.tolerance <= 0 or not 0 < self.holdout <= 0.5:
            raise ValueError(
                f"steps={self.steps}, tolerance={self.tolerance}, holdout={self.holdout}: steps and tolerance must be "
                "above 0, holdout a share up to 0.5"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: choose one of {', '.join(PRECISIONS)}")

    def grid(self) -> list[float]:
        """Every C, weakest first: there the solution is the simplest."""
        first, last = math.log10(self.weakest), math.log10(self.strongest)
        return (10 ** torch.linspace(first, last, self.strengths, dtype=torch.float64)).tolist()


@dataclass(frozen=True)
class Rows:
    """Features to fit, and what they are."""

    inputs: Tensor  # (N, D), in the type and on the device of the fit
    labels: Tensor  # (N,)

    def part(self, rows: Tensor) -> "Rows":
        """Some of them."""
        rows = rows.to(self.labels.device)
        return Rows(self.inputs[rows], self.labels[rows])


def run(context: Context, task: Task, config: LogisticConfig) -> Iterator[Score]:
    """One score per slice."""
    assert task.train is not None
    check_classes(task.test, task.train)
    validation = getattr(task.train.source, "validation", None)
    every = torch.arange(len(task.train.source))
    split_for_choice(every, torch.tensor(task.train.source.labels), validation, config)  # or an error, before features
    view = ResizeCrop(config.resize, config.size)
    train, test = context.store.images(task.train, view), context.store.images(task.test, view)
    if not is_main():
        return
    labels, answers = labels_of(task.train, train), answers_of(task.test, test, task.train)
    parts = split_for_choice(train.index, labels, validation, config)
    classes = task.train.source.classes
    metric = Answers(labels[parts[1]], mean_per_class=answers.mean_per_class)
    patch_widths = context.widths(train.mean_patch.shape[-1])
    with ProgressFile(context.output / "logistic.partial") as progress:
        for name, width in context.widths(train.cls.shape[-1]).items():
            value = progress.get(what := f"{name}, score")
            if value is None:
                reads = HeadInput(1, width, patch_widths[name] if config.mean_patch else 0)
                rows = _rows(train, labels, reads, config, context.device)
                chosen, best = choose_strength(rows, parts, len(classes), metric, config, progress, name)
                solution = _fit(rows, len(classes), chosen, best, config)
                head = LinearHead(reads, solution.weight, solution.bias)
                about = {"model": context.backbone.hash, "data": task.train.hash, "C": chosen}
                about["gradient"] = solution.gradient
                save_head(context.output / f"logistic-{name.replace('/', '_')}.pth", head, about, classes)
                value = answers.score(answers.restrict(head.scores(test)).argmax(dim=1))
                progress.keep(what, value)
                progress.keep(name, None)  # its solutions
            yield Score(
                metric=answers.metric,
                value=value,
                values=(value,),
                seeds=(config.seed,),
                resolution=str(config.size),
                slice=name,
            )


def split_for_choice(
    index: Tensor, labels: Tensor, validation: list[int] | None, config: LogisticConfig
) -> tuple[Tensor, Tensor]:
    """Row numbers to learn from and to choose on.

    Args:
        index: (N,) number of each row's image in its source.
        validation: numbers of the images that the data set sets apart; None or empty: some are held out.
    """
    if not validation:
        return hold_out(labels, config.holdout, config.seed)
    apart = torch.isin(index, torch.tensor(validation))
    if apart.all() or not apart.any():
        raise EvalError(
            f"{int(apart.sum())} of {len(index)} training images that can be read belong to the data set's validation "
            "split: some must, and some must not"
        )
    return (~apart).nonzero()[:, 0], apart.nonzero()[:, 0]


def choose_strength(
    rows: Rows,
    parts: tuple[Tensor, Tensor],
    classes: int,
    metric: Answers,
    config: LogisticConfig,
    progress: ProgressFile,
    name: str,
) -> tuple[float, Solution]:
    """The C with the best score on the validation part, the smaller one of equals, and its solution.

    What was tried is kept under ``name``.
    """
    learn, check = (rows.part(part) for part in parts)
    grid = config.grid()
    state = progress.get(name) or {"scores": []}
    scores: list[float] = list(state["scores"])
    last, best = (_restored(state.get(which)) for which in ("last", "best"))
    for strength in grid[len(scores) :]:
        last = _fit(learn, classes, strength, last, config)
        score = metric.score((check.inputs @ last.weight.T + last.bias).argmax(dim=1))
        if best is None or score > max(scores):
            best = last
        scores.append(score)
        logger.info("C = %.3g: %.2f %% on the validation split after %d steps", strength, score, last.steps)
        progress.keep(name, {"scores": list(scores), "last": vars(last), "best": vars(best)})
    assert best is not None
    chosen = scores.index(max(scores))
    if len(grid) > 1 and chosen in (0, len(grid) - 1) and scores.count(scores[chosen]) == 1:
        logger.warning("the best C = %.3g lies at the end of those tried: widen weakest and strongest", grid[chosen])
    return grid[chosen], best


def _fit(rows: Rows, classes: int, strength: float, start: Solution | None, config: LogisticConfig) -> Solution:
    return fit_logistic(rows.inputs, rows.labels, classes, strength, start, config.steps, config.tolerance)


def _restored(values: dict[str, object] | None) -> Solution | None:
    return None if values is None else Solution(**values)  # type: ignore[arg-type]


def _rows(
    features: ImageFeatures, labels: Tensor, reads: HeadInput, config: LogisticConfig, device: torch.device
) -> Rows:
    dtype = PRECISIONS[config.precision]
    place = place_of_doubles(device) if dtype == torch.float64 else device
    return Rows(reads.of(features.cls, features.mean_patch).to(place).to(dtype), labels.to(place))


PROTOCOL = Protocol(config=LogisticConfig, run=run)
