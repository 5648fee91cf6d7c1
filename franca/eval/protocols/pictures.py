"""Pictures of what a backbone sees, as PNG files: PCA of patch features, attention, clusters, masks.

pca: first three principal components as red, green and blue, across all images (paper Fig. 8); foreground: the same for
the patches on the upper side of the first component; slices: for the first d, d/2 … d/16 features (Fig. 3), or those
that --slice names where it names several; attention: of the class token in the last block, mean and single heads
(Fig. 10); clusters: k-means across images; masks: those of the data set, beside clusters that are given the class of
most of their pixels. All but slices and attention look at the slice that --slice names, the widest of several. Colours
are fixed by the features: the same command draws the same picture, and a rotation or another sign of the features
changes nothing.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from franca.distributed import is_main
from franca.eval import figures
from franca.eval.backbones import load_backbone
from franca.eval.context import DIVISORS, Context, Engine
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.picture_input import Picture, load_pictures, view_for
from franca.eval.protocol import Protocol, Task
from franca.eval.result import Score

if TYPE_CHECKING:
    from franca.eval.figures.sheets import Sheet

logger = logging.getLogger(__name__)

KINDS = ("pca", "foreground", "slices", "attention", "clusters", "masks")
LAYOUTS = ("side", "overlay")
BLOCKS = 3  # of rows in one file


@dataclass
class PicturesConfig:
    """What to draw, and how.

    kinds: which pictures. images: how many of the data set, spread over it. numbers: which ones instead, from 0.
    size: longer side in pixels, rounded to whole patches; 0: as the files are. Proportions are kept.
    layout: "side" shows maps below the images, "overlay" over them. opacity: of maps laid over images, 0 to 1.
    columns: images beside one another.
    threshold: of the first component for the foreground, from 0 (its 1st percentile) to 1 (its 99th); null: Otsu's.
    heads: of the attention, after their mean; 0: all. clusters: of k-means; seed: of its start.
    beside: other models in the same pictures, named as for --model.
    """

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    images: int = 8
    numbers: list[int] = field(default_factory=list)
    size: int = 518
    layout: str = "side"
    opacity: float = 0.6
    columns: int = 4
    threshold: float | None = None
    heads: int = 3
    clusters: int = 8
    seed: int = 0
    beside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds={self.kinds}: choose from {', '.join(KINDS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r}: choose {' or '.join(LAYOUTS)}")
        for name, least in (("images", 1), ("size", 0), ("columns", 1), ("heads", 0), ("clusters", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more")
        for name in ("opacity", "threshold"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie from 0 to 1")


def run(context: Context, task: Task, config: PicturesConfig) -> Iterator[Score]:
    """Draw; no score comes of it."""
    if is_main():
        draw(context, task.test, config)
    yield from ()


def draw(context: Context, split: OpenedSplit, config: PicturesConfig) -> list[Path]:
    """Draw every kind of picture into the folder for output; returns the files.

    Raises EvalError where none can be drawn.
    """
    if not figures.can_draw():
        raise EvalError("pictures need matplotlib: pip install 'franca[eval]'")
    from franca.eval.figures.gallery import image_grid
    from franca.eval.figures.sheets import DRAWINGS

    sheet = sheet_of(context, split, config)
    files: list[Path] = []
    refused: list[str] = []
    for kind in context.track(config.kinds, "pictures"):
        try:
            drawing = DRAWINGS[kind](sheet)
        except EvalError as error:
            logger.warning("no picture of %s: %s", kind, error)
            refused.append(f"{kind}: {error}")
            continue
        for number, part in enumerate(drawing.parts(config.columns * BLOCKS), start=1):
            files.append(context.output / (f"{kind}.png" if number == 1 else f"{kind}-{number}.png"))
            image_grid(files[-1], part, drawing.title, columns=config.columns, legend=drawing.legend)
    if not files:
        raise EvalError("; ".join(refused))
    return files


def sheet_of(context: Context, split: OpenedSplit, config: PicturesConfig) -> "Sheet":
    """The images as every model sees them. Raises EvalError where none can be read."""
    from franca.eval.figures import sheets

    over = config.layout == "overlay"
    look = sheets.Look(over, config.opacity, config.threshold, config.heads, config.clusters, config.seed)
    models = [
        sheets.Seen(engine.backbone.name, engine, pictures, context.batch_size, min(context.slices, default=1))
        for engine, pictures in seen_by(engines(context, config.beside), split, config)
    ]
    slices = sheets.DIVISORS if len(context.slices) == 1 else sorted(context.slices or DIVISORS)
    return sheets.Sheet(models, look, split.source.classes, slices)


def engines(context: Context, beside: Sequence[str]) -> list[Engine]:
    """The evaluated backbone at work, then others by their names."""
    others = [load_backbone(name).to(context.device) for name in beside]
    return [context.engine, *(replace(context.engine, backbone=backbone) for backbone in others)]


def seen_by(
    found: Sequence[Engine], split: OpenedSplit, config: PicturesConfig
) -> Iterator[tuple[Engine, list[Picture]]]:
    """Every backbone with the images as it sees them. Raises EvalError for numbers of no image, or none readable."""
    count = len(split.source)
    wanted = min(config.images, count)
    numbers = config.numbers or [i * count // wanted for i in range(wanted)]
    if min(numbers) < 0 or max(numbers) >= count:
        raise EvalError(f"numbers={numbers}: the images of {split.name} {split.split} are 0 to {count - 1}")
    for engine in found:
        pictures = load_pictures(split.source, numbers, view_for(engine, config.size))
        if not pictures:
            raise EvalError(f"none of the images {numbers} of {split.name} {split.split} can be read")
        yield engine, pictures


PROTOCOL = Protocol(config=PicturesConfig, run=run)
