"""Linear segmentation: batch norm and one linear layer on frozen patch features, trained with pixel-wise cross-entropy.

The paper's settings (Appendix C; Table 2a) are those of DINOv2 with crops of 518, 50 epochs, and by data set: SGD for
VOC; for ADE20K images enlarged up to three times, and tests at three scales. Images are resized, cut at random,
mirrored and changed in colour for training; windows that overlap by half are averaged in the test. Scores are counted
on the masks at their full resolution (images of 2048 pixels and more are halved when they are read), void pixels
nowhere. What the paper doesn't say (batch size, warm-up, data sets other than these two) is as in DINOv2. One process
trains, whatever is launched.

--preset whole takes whole images squashed to a square in place of crops and windows: their features are stored once,
and everything takes minutes. Such scores compare with each other only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from franca.data.random_streams import generator
from franca.distributed import is_main
from franca.eval.context import Context
from franca.eval.metrics.segmentation import confusion_matrix, mean_iou
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.linear_segmentation_crops import CropSettings
from franca.eval.protocols.linear_segmentation_head import build_heads
from franca.eval.protocols.linear_segmentation_sides import Side, WholeImages, Windows
from franca.eval.protocols.linear_segmentation_training import OPTIMIZERS, Recipe, train
from franca.eval.protocols.linear_segmentation_windows import WindowSettings
from franca.eval.protocols.progress_file import ProgressFile
from franca.eval.protocols.segmentation_task import masked_sources
from franca.eval.result import Score
from franca.eval.views import Squash


@dataclass(frozen=True)
class Choice:
    """What the paper sets by data set."""

    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    ratio: tuple[float, ...] = (0.5, 2.0)
    scales: tuple[float, ...] = (1.0,)


# layout -> what the paper changed; every other set is treated as DINOv2 treats all
BY_DATA = {
    "voc": Choice(optimizer="sgd", weight_decay=5e-4),
    "ade20k": Choice(ratio=(1.0, 3.0), scales=(1.0, 1.32, 1.73)),
}


@dataclass
class LinearSegmentationConfig:
    """Settings of the paper; null is chosen by data set (``BY_DATA``).

    crop: side of crops and windows in pixels, raised to a multiple of the model's patch. stride: of windows, in crops.
    scales: of the shorter side in the test, in crops; flip: each mirrored as well. ratio: of the shorter side in
    training. epochs: over the training images; iterations: steps in their place, if not 0. batch: images of a step.
    warm_up: share of the steps (DINOv2: 1500 of 40,000). momentum: of sgd. whole: see above; ratio, stride, scales and
    flip then mean nothing. seeds: of weights, order and crops; one training and one value each.
    """

    crop: int = 518
    stride: float = 0.5
    scales: list[float] | None = None
    flip: bool = False
    ratio: list[float] | None = None
    epochs: int = 50
    iterations: int = 0
    batch: int = 16
    optimizer: str | None = None
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float | None = None
    warm_up: float = 0.0375
    whole: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        for name in ("crop", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.iterations < 0 or not self.lr > 0 or not 0 <= self.warm_up < 1 or not 0 < self.stride <= 1:
            raise ValueError(
                f"iterations={self.iterations} lr={self.lr} warm_up={self.warm_up} stride={self.stride}: iterations "
                "must be 0 or more, lr above 0, warm_up from 0 to below 1, stride above 0 and at most 1"
            )
        if self.optimizer not in (None, *OPTIMIZERS):
            raise ValueError(f"optimizer={self.optimizer!r}: choose {' or '.join(OPTIMIZERS)}, or null")
        if self.ratio is not None and (len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"ratio={self.ratio}: give the least and the largest, both above 0")
        if self.scales is not None and (not self.scales or min(self.scales) <= 0):
            raise ValueError(f"scales={self.scales}: name one or more, each above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: name one or more different seeds")

    def choice(self, layout: str) -> Choice:
        """What is given here, the rest by data set."""
        usual = BY_DATA.get(layout, Choice())
        return Choice(
            self.optimizer or usual.optimizer,
            usual.weight_decay if self.weight_decay is None else self.weight_decay,
            tuple(self.ratio or usual.ratio),
            tuple(self.scales or usual.scales),
        )

    def recipe(self, layout: str, images: int) -> Recipe:
        """Training on so many images."""
        choice, per_epoch = self.choice(layout), math.ceil(images / self.batch)
        return Recipe(
            choice.optimizer,
            self.lr,
            self.momentum,
            choice.weight_decay,
            steps=self.iterations or self.epochs * per_epoch,
            steps_per_epoch=1 if self.iterations else per_epoch,
            warm_up=self.warm_up,
        )


def run(context: Context, task: Task, config: LinearSegmentationConfig) -> Iterator[Score]:
    """miou of every slice; all slices are trained together."""
    crop = whole_patches(config.crop, context.backbone.patch_size)
    side = _look(context, task, config, crop)
    if side is None:
        return
    classes, layout = len(task.test.source.classes), task.test.name
    recipe = config.recipe(layout, side.images)
    values: dict[str, list[float]] = {name: [] for name in context.widths(side.width)}
    with ProgressFile(context.output / "linear_segmentation.progress") as progress:
        for seed in config.seeds:
            heads = _trained(context, side, config, recipe, classes, seed, progress)
            for name, confusion in _test(context, side, heads, classes, progress, f"test, seed {seed}").items():
                values[name].append(100 * mean_iou(confusion))
    scales = config.choice(layout).scales
    for name, found in values.items():
        yield Score(
            "miou",
            sum(found) / len(found),
            resolution=f"{crop} whole" if config.whole else f"{crop} windows, stride {int(config.stride * crop)}",
            settings={"optimizer": recipe.optimizer, "steps": recipe.steps},
            slice=name,
            values=tuple(found),
            seeds=tuple(config.seeds),
            tta="none" if config.whole else _augmentation(scales, config.flip),
        )


def _trained(
    context: Context,
    side: Side,
    config: LinearSegmentationConfig,
    recipe: Recipe,
    classes: int,
    seed: int,
    progress: ProgressFile,
) -> nn.ModuleDict:
    """A head for each slice."""
    widths = context.widths(side.width)
    generators = {name: generator("linear segmentation head", seed, width) for name, width in widths.items()}
    heads = build_heads(widths, classes, generators).to(context.device)

    def batches(steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        described = f"linear segmentation, seed {seed}"
        return context.track(side.batches(seed, config.batch, steps), described, len(steps))

    train(heads, batches, recipe, progress, f"training, seed {seed}")
    return heads


def whole_patches(size: int, patch: int | None) -> int:
    """The least multiple of the patch side that isn't below ``size``; size itself where the patch is unknown."""
    return -(-size // patch) * patch if patch else size


def _look(context: Context, task: Task, config: LinearSegmentationConfig, crop: int) -> Side | None:
    """How images are looked at; None in all processes but the first."""
    train_source, test_source = masked_sources(task)
    if config.whole:
        assert task.train is not None
        view = Squash(crop)
        stored = context.store.patches(task.train, view)
        queries = context.store.patches(task.test, view)
        return WholeImages(context, train_source, stored, test_source, queries, crop) if is_main() else None
    if not is_main():
        return None
    choice = config.choice(task.test.name)
    fill = tuple(round(255 * mean) for mean in context.backbone.mean)
    crops = CropSettings(crop, (choice.ratio[0], choice.ratio[1]), fill)
    windows = WindowSettings(crop, max(1, int(config.stride * crop)), choice.scales, config.flip, fill)
    return Windows(context, train_source, test_source, crops, windows)


def _test(
    context: Context, side: Side, heads: nn.ModuleDict, classes: int, progress: ProgressFile, name: str
) -> dict[str, Tensor]:
    """Confusion matrix of each slice over all test images; goes on from where an earlier process stopped."""
    done, confusions = progress.get(name) or (
        0,
        {head: torch.zeros(classes, classes, dtype=torch.int64) for head in heads},
    )
    predictions = side.predictions(heads, done)
    for mask, predicted in context.track(predictions, "test images", side.tests() - done):
        confusions = {
            head: confusion + confusion_matrix(predicted[head], mask, classes) for head, confusion in confusions.items()
        }
        done += 1
        progress.keep(name, (done, confusions))
    return confusions


def _augmentation(scales: tuple[float, ...], flip: bool) -> str:
    several = f"scales {' '.join(map(str, scales))}" if scales != (1.0,) else ""
    return ", ".join(part for part in (several, "mirrored" if flip else "") if part) or "none"


PROTOCOL = Protocol(
    config=LinearSegmentationConfig,
    run=run,
    presets={
        # DINOv2's configurations for its linear head: every data set alike.
        "dinov2": {
            "crop": 512,
            "stride": 0.667,
            "iterations": 40_000,
            "optimizer": "adamw",
            "weight_decay": 1e-4,
            "ratio": [0.5, 2.0],
            "scales": [1.0],
        },
        "whole": {"whole": True},
    },
)
