"""Linear probe: linear classifiers on frozen features, one for each learning rate and input, all trained together.

Inputs are the class tokens of the last 1 or 4 blocks, with or without the mean patch (DINOv2, Sec. 7.1). By default the
features are extracted once, from one central crop of each image, and the best classifier is chosen on a part of the
training images that none has learned from. The preset dinov2 does what DINOv2's code does: it learns from random
crops, which go through the backbone at every step, and chooses the classifier on the test set itself, so that its
scores are a little higher than they would be on new images.

The chosen classifier is saved (linear-d.pth) and, with transfer=[imagenet_v2:PATH, ...], scored on other sets with the
same classes. A saved classifier of the same model, data and options is scored again, not trained again. An interrupted
training goes on where it was last saved.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from franca.distributed import is_main, on_main
from franca.eval.context import Context
from franca.eval.datasets import OpenedSplit, open_split
from franca.eval.errors import EvalError
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.answers import Answers, answers_of, check_classes, labels_of
from franca.eval.protocols.held_out import hold_out
from franca.eval.protocols.linear_batches import augmented_batches, stored_batches
from franca.eval.protocols.linear_grid import HeadGrid
from franca.eval.protocols.linear_head import HeadInput, LinearHead, save_head
from franca.eval.protocols.linear_saved import head_file, saved_heads
from franca.eval.protocols.progress_file import ProgressFile
from franca.eval.result import Score
from franca.eval.store import ImageFeatures
from franca.eval.views import ResizeCrop

logger = logging.getLogger(__name__)

CHOICES = ("held_out", "test")
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MANY_EPOCHS = 100
RATES_HOLD_FOR = 256  # images in a batch


@dataclass(frozen=True)
class LinearConfig:
    """Settings of the linear probe.

    Attributes:
        rates: learning rates for a batch of 256; they grow with the batch.
        blocks: of how many last blocks the class tokens are read; a network that tells fewer is asked for fewer.
        mean_patch: without, with the mean patch, or both.
        steps, batch_size, momentum: of SGD. Fewer training images than batch_size make the batch smaller.
        augment: learn from random crops (8 to 100 % of the area, flipped) instead of stored features.
        choose_on: held_out (a part of the training images) or test.
        holdout: that part. seed: of that part, of the first weights, of order and crops.
        transfer: other test sets for the chosen classifier, as LAYOUT:PATH.
        resize, size: shorter side of the images, and the central square that the model sees, in pixels.
    """

    SCORING: ClassVar[tuple[str, ...]] = ("transfer",)  # what changes no classifier

    rates: list[float] = field(default_factory=lambda: list(RATES))
    blocks: list[int] = field(default_factory=lambda: [1, 4])
    mean_patch: list[bool] = field(default_factory=lambda: [False, True])
    steps: int = 12_500
    batch_size: int = 1024
    momentum: float = 0.9
    augment: bool = False
    choose_on: str = "held_out"
    holdout: float = 0.1
    seed: int = 0
    transfer: list[str] = field(default_factory=list)
    resize: int = 256
    size: int = 224

    def training(self) -> dict[str, Any]:
        """The options that decide the classifier."""
        return {name: value for name, value in asdict(self).items() if name not in self.SCORING}

    def __post_init__(self) -> None:
        if not (self.rates and self.blocks and self.mean_patch) or min(self.rates) <= 0 or min(self.blocks) < 1:
            raise ValueError(
                f"rates={self.rates}, blocks={self.blocks}, mean_patch={self.mean_patch}: give one of each at least, "
                "rates and blocks above 0"
            )
        if self.steps < 1 or self.batch_size < 1 or not 0 <= self.momentum < 1 or not 0 < self.holdout <= 0.5:
            raise ValueError(
                f"steps={self.steps}, batch_size={self.batch_size}, momentum={self.momentum}, holdout={self.holdout}: "
                "steps and batch_size must be above 0, momentum below 1, holdout a share up to 0.5"
            )
        if self.choose_on not in CHOICES:
            raise ValueError(f"choose_on={self.choose_on!r}: choose one of {', '.join(CHOICES)}")


@dataclass(frozen=True)
class TestSet:
    """Features of a test set and what it asks."""

    split: OpenedSplit
    features: ImageFeatures
    answers: Answers


def run(context: Context, task: Task, config: LinearConfig) -> Iterator[Score]:
    """One score per slice and test set."""
    train = task.train
    assert train is not None
    deepest = _deepest(context, config)
    view = ResizeCrop(config.resize, config.size)
    others = [open_split(name, None, "test", "classification") for name in config.transfer]
    for split in (task.test, *others):
        check_classes(split, train)
    learn, held = _numbers(train, config)
    splits = [(split, context.store.images(split, view, deepest)) for split in (task.test, *others)]
    tests = [TestSet(split, features, answers_of(split, features, train)) for split, features in splits]
    inputs = _inputs(context, config, tests[0].features, deepest)
    about = _about(context, task, config)
    if not on_main(lambda: len(saved_heads(context, inputs, about)) == len(inputs)):
        stored = None if config.augment and not len(held) else context.store.images(train, view, deepest)
        reads = [each for kinds in inputs.values() for each in kinds]
        with ProgressFile(context.output / "linear.partial") as progress:
            grid = _train(context, train, config, stored, learn, reads, progress)
            if is_main():
                choice = tests[0] if stored is None or not len(held) else _held_out(train, stored, held, task.test)
                where = "test" if choice is tests[0] else "held-out training"
                for name, kinds in inputs.items():
                    head, choice_of = _best(grid, kinds, choice, where)
                    save_head(head_file(context, name), head, about | choice_of, train.source.classes)
    if is_main():
        for name, head in saved_heads(context, inputs, about).items():
            yield from _scores(head, name, tests, config)


def _about(context: Context, task: Task, config: LinearConfig) -> dict[str, Any]:
    """What decides the classifiers of an evaluation, beside the slice."""
    assert task.train is not None
    return {
        "model": context.backbone.hash,
        "data": task.train.hash,
        "chosen on": config.choose_on,
        "test": task.test.hash if config.choose_on == "test" else "",
        "options": config.training(),
    }


def _scores(head: LinearHead, slice_name: str, tests: list[TestSet], config: LinearConfig) -> Iterator[Score]:
    for number, test in enumerate(tests):
        value = _score(head, test)
        yield Score(
            metric=test.answers.metric,
            value=value,
            values=(value,),
            seeds=(config.seed,),
            resolution=str(config.size),
            settings={"chosen_on": config.choose_on},
            slice=slice_name,
            data=test.split.name if number else "",
            split=test.split.split if number else "",
            data_hash=test.split.hash if number else "",
        )


def _held_out(train: OpenedSplit, stored: ImageFeatures, held: Tensor, test: OpenedSplit) -> TestSet:
    """The held-out training images, scored as the test set asks."""
    kept = torch.isin(stored.index, held).nonzero()[:, 0]
    answers = Answers(labels_of(train, stored)[kept], mean_per_class=test.mean_per_class)
    return TestSet(train, _part(stored, kept), answers)


def _deepest(context: Context, config: LinearConfig) -> int:
    """How many of the last blocks are read."""
    told = [blocks for blocks in config.blocks if blocks <= context.backbone.blocks]
    if not told:
        raise EvalError(f"blocks={config.blocks}: {context.backbone.name} can tell the last {context.backbone.blocks}")
    if len(told) < len(config.blocks):
        logger.warning("%s can tell the last %d blocks: others are left out", context.backbone.name, max(told))
    return max(told)


def _inputs(
    context: Context, config: LinearConfig, features: ImageFeatures, deepest: int
) -> dict[str, list[HeadInput]]:
    """What classifiers read, by slice."""
    patch_widths = context.widths(features.mean_patch.shape[-1])
    return {
        name: [
            HeadInput(blocks, width, patch_widths[name] if mean_patch else 0)
            for blocks in config.blocks
            if blocks <= deepest
            for mean_patch in config.mean_patch
        ]
        for name, width in context.widths(features.cls.shape[-1]).items()
    }


def _numbers(train: OpenedSplit, config: LinearConfig) -> tuple[Tensor, Tensor]:
    """Numbers of the images to learn from and of those held out."""
    if config.choose_on == "test":
        return torch.arange(len(train.source)), torch.empty(0, dtype=torch.int64)
    return hold_out(torch.tensor(train.source.labels), config.holdout, config.seed)


def _train(
    context: Context,
    train: OpenedSplit,
    config: LinearConfig,
    stored: ImageFeatures | None,
    learn: Tensor,
    reads: list[HeadInput],
    progress: ProgressFile,
) -> HeadGrid:
    """All classifiers, trained, in the first process; in the others as they began."""
    rows = learn if config.augment or stored is None else torch.isin(stored.index, learn).nonzero()[:, 0]
    size = min(config.batch_size, len(rows))
    _hint(config.steps, size, len(rows))
    rates = [rate * size / RATES_HOLD_FOR for rate in config.rates]
    classes = len(train.source.classes)
    grid = HeadGrid(reads, rates, classes, config.steps, context.device, config.momentum, config.seed)
    if is_main() and progress.get("grid"):
        grid.restore(progress.get("grid"))
        logger.info("going on with step %d of %d", grid.step, grid.steps)
    steps = range(on_main(lambda: grid.step), config.steps)
    if config.augment:
        deepest = max(each.blocks for each in reads)
        batches = augmented_batches(context, train.source, rows, config.size, deepest, size, steps, config.seed)
    else:
        assert stored is not None
        own = steps if is_main() else range(0)
        batches = stored_batches(stored, labels_of(train, stored), rows, size, own, config.seed, context.device)
    for batch in context.track(batches, "linear probe", len(steps)):
        if is_main():
            grid.learn(batch.cls, batch.mean_patch, batch.labels)
            if progress.due or grid.step == grid.steps:
                progress.keep("grid", grid.state())
    return grid


def _hint(steps: int, size: int, images: int) -> None:
    """The default number of steps is made for ImageNet: say it where the set is so small that far fewer do."""
    epochs = steps * size / images
    if epochs > MANY_EPOCHS:
        logger.warning(
            "steps=%d with batches of %d are %.0f epochs of %d images; steps=%d makes %d of them, in less time",
            *(steps, size, epochs, images, -(-MANY_EPOCHS * images // size), MANY_EPOCHS),
        )


def _best(grid: HeadGrid, kinds: list[HeadInput], choice: TestSet, where: str) -> tuple[LinearHead, dict[str, Any]]:
    """The classifier with the best score, the first of equals: fewer inputs, smaller rates. ``where``: for people."""
    scored = [(head, rate, _score(head, choice)) for head, rate in grid.heads() if head.reads in kinds]
    if not scored:
        raise EvalError("the weights of every classifier have grown beyond all numbers: choose smaller rates")
    head, rate, score = max(scored, key=lambda each: each[2])
    reads = head.reads
    logger.info(
        "linear probe: of %d classifiers the best on the %s images, with %.2f %% accuracy there, has learning "
        "rate %.3g and reads the class %s%s",
        *(len(scored), where, score, rate),
        "token of the last block" if reads.blocks == 1 else f"tokens of the last {reads.blocks} blocks",
        " and the mean patch" if reads.patch_width else "",
    )
    return head, {"rate": rate, "blocks": reads.blocks, "mean_patch": reads.patch_width > 0, "score of choice": score}


def _score(head: LinearHead, test: TestSet) -> float:
    return test.answers.score(test.answers.restrict(head.scores(test.features)).argmax(dim=1))


def _part(features: ImageFeatures, rows: Tensor) -> ImageFeatures:
    """Some rows, in memory."""
    labels = None if features.labels is None else features.labels[rows]
    return ImageFeatures(features.cls[rows], features.mean_patch[rows], features.index[rows], labels)


PROTOCOL = Protocol(
    config=LinearConfig,
    run=run,
    presets={"dinov2": {"augment": True, "choose_on": "test"}},
)
