"""In-context segmentation (Hummingbird): classes of pixels from similar patches of annotated images, without training.

Every patch of the training images is remembered with the classes of its pixels. A patch of a test image gets the
classes of the 30 remembered ones it resembles most; the grid is resized to the mask (Balazevic et al., 2023; paper
Appendix C and Table 2a). Reported are miou, and miou_hungarian, in which the predicted classes are first renamed for
the best match; two classes that are always confused don't show there. open-hummingbird-eval, and so the paper, renames
them, but it also takes void as a class (void=background) and counts absent classes as 0 (absent=zero): only
--preset hummingbird gives its number. With the whole memory and no augmentation nothing is random: there is one value
and no spread. Where seeds matter (memory=…, augment=true) there is a value for each.

Legend: N images, h x w patches each, D features, C classes.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.distributed import is_main
from franca.eval.context import Context
from franca.eval.datasets import VOID, OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.metrics.segmentation import confusion_matrix, hungarian, mean_iou, renamed
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.in_context_augmentation import augmented
from franca.eval.protocols.in_context_config import InContextConfig
from franca.eval.protocols.in_context_memory import Memory, choose_rows, count_classes, count_type, remember
from franca.eval.protocols.in_context_prediction import Search, exact_search, predict_patches, predict_pixels
from franca.eval.protocols.progress_file import ProgressFile
from franca.eval.protocols.segmentation_task import masked_sources, with_masks
from franca.eval.protocols.waiting import while_others_wait
from franca.eval.quantised_index import QuantisedIndex, recall
from franca.eval.result import Score
from franca.eval.store import PatchFeatures
from franca.eval.views import Squash

logger = logging.getLogger(__name__)

RECALL_QUERIES = 256  # searched exactly as well
GIGABYTE = 1e9
QUERIES_AT_ONCE = 1 << 16  # patches: the memory is read once for each


@dataclass(frozen=True)
class Side:
    """A split with its features."""

    split: OpenedSplit
    features: PatchFeatures

    def mask(self, place: int) -> Tensor:
        """(H, W) uint8 of the image whose features stand at ``place``."""
        return with_masks(self.split.source).mask(int(self.features.index[place]))


@dataclass(frozen=True)
class Outcome:
    """Of one slice and one memory."""

    confusion: Tensor  # (C, C) over all test images; (C, C + 1) where void pixels have a class of their own
    recall: float | None  # of the search, in percent; None where it is exact


def run(context: Context, task: Task, config: InContextConfig) -> Iterator[Score]:
    """miou and miou_hungarian of every slice."""
    masked_sources(task)
    assert task.train is not None
    if config.hungarian:
        hungarian(torch.eye(2))  # says what is missing before hours of work
    view = Squash(config.size)
    test = Side(task.test, context.store.patches(task.test, view))
    splits = [augmented(task.train, config.size, seed) for seed in config.seeds] if config.augment else [task.train]
    _say_space(context, test, len(task.train.source), len(splits))
    found: dict[str, list[Outcome]] = {}  # slice -> one for every seed
    with ProgressFile(context.output / "in_context.progress") as progress:
        for place, split in enumerate(splits):  # the first search doesn't wait for the last extraction
            train = Side(split, context.store.patches(split, view))
            random = config.augment or _is_sampled(config, train)
            seeds = config.seeds if random else config.seeds[:1]
            of_memory = seeds[place : place + 1] if config.augment else seeds
            while_others_wait(partial(_ask, context, config, train, test, of_memory, progress, found))
    for name, outcomes in found.items():
        yield from _scores(config, name, outcomes, seeds if random else [])


def _say_space(context: Context, test: Side, images: int, tables: int) -> None:
    """How much disk the features of the training images take, before they are extracted."""
    if is_main():
        grids, folder = test.features.patches, context.store.folder
        needed = tables * images * grids[0].numel() * grids.element_size()
        free = shutil.disk_usage(folder).free
        logger.info(
            "in-context: features of %d training images%s take %s on disk, less what is there already; %s are free "
            "in %s",
            *(images, f", {tables} times" if tables > 1 else "", _bytes(needed), _bytes(free), folder),
        )


def _bytes(count: float) -> str:
    """``3.2 GB``, or ``17.4 MB`` where it is less than one."""
    return f"{count / GIGABYTE:.1f} GB" if count >= GIGABYTE else f"{1000 * count / GIGABYTE:.1f} MB"


def _is_sampled(config: InContextConfig, train: Side) -> bool:
    """Whether chance decides which patches are remembered."""
    images, height, width = train.features.patches.shape[:3]
    return 0 < config.memory < images * height * width


def _ask(
    context: Context,
    config: InContextConfig,
    train: Side,
    test: Side,
    seeds: Sequence[int],
    progress: ProgressFile,
    found: dict[str, list[Outcome]],
) -> None:
    """Add the outcomes of these training images by slice, one for each seed."""
    counts = _class_counts(context, config, train)
    for seed in seeds:
        for name, outcome in _by_slice(context, config, train, counts, test, seed, progress):
            found.setdefault(name, []).append(outcome)


def _by_slice(
    context: Context,
    config: InContextConfig,
    train: Side,
    counts: Tensor,
    test: Side,
    seed: int,
    progress: ProgressFile,
) -> Iterator[tuple[str, Outcome]]:
    """Name and outcome of each slice, for one memory."""
    generators = (generator("in-context memory", seed, int(number)) for number in train.features.index)
    chosen = choose_rows(counts, config.memory, generators)
    features = train.features.patches.flatten(0, 2)
    pixels = config.size**2 // (counts.shape[1] * counts.shape[2])
    memory = remember(features, counts.flatten(0, 2), chosen, pixels)
    if len(memory.features) < config.neighbours:
        raise EvalError(
            f"neighbours={config.neighbours}: only {len(memory.features)} patches are remembered; ask for fewer"
        )
    logger.info("in-context: a memory of %d patches", len(memory.features))
    for name, width in context.widths(features.shape[1]).items():
        part = memory.first(width)
        search, recalled = _search(context, config, part, test)
        confusion = _confusion(context, config, part, search, test, progress, f"slice {name}, seed {seed}")
        yield name, Outcome(confusion, recalled)


def _search(context: Context, config: InContextConfig, memory: Memory, test: Side) -> tuple[Search, float | None]:
    """What finds neighbours, and its recall where it isn't exact."""
    exact = exact_search(memory, config.neighbours, context.device)
    if config.search == "exact":
        return exact, None
    index = QuantisedIndex(memory.features, cosine=True, track=lambda items: context.track(items, "quantised memory"))

    def quantised(queries: Tensor) -> tuple[Tensor, Tensor]:
        return index.nearest(queries, config.neighbours, config.probes)

    patches = test.features.patches.flatten(0, 2)
    some = patches[:: max(1, len(patches) // RECALL_QUERIES), : memory.features.width]
    return quantised, recall(quantised(some)[1], exact(some)[1])


def _class_counts(context: Context, config: InContextConfig, train: Side) -> Tensor:
    """Pixels of each class in each patch of the training images, (N, h, w, C), or C + 1 with a class for void ones."""
    view, grid = Squash(config.size), train.features.patches.shape[1:3]
    classes = with_masks(train.split.source).classes
    void = void_class(config.void, classes)
    columns = max(len(classes), void + 1 if void != VOID else 0)
    kind = count_type(config.size**2 // (grid[0] * grid[1]))
    counts = torch.empty(len(train.features.index), *grid, columns, dtype=kind)
    for place in context.track(range(len(counts)), "training masks"):
        mask = view.mask(train.mask(place))
        counts[place] = count_classes(mask.masked_fill(mask == VOID, void)[None], (grid[0], grid[1]), columns)[0]
    return counts


def void_class(choice: str, classes: Sequence[str]) -> int:
    """What void pixels of training masks are remembered as; VOID: as nothing.

    The number behind the last class is one of their own: open-hummingbird-eval has 151 classes of ADE20K, of which
    "others" is in the memory and never scored.
    """
    if choice == "ignore":
        return VOID
    return 0 if choice == "first" or classes[0] == "background" else len(classes)


def _confusion(
    context: Context,
    config: InContextConfig,
    memory: Memory,
    search: Search,
    test: Side,
    progress: ProgressFile,
    what: str,
) -> Tensor:
    """Of all test images, (C, C) or (C, C + 1); goes on from where an earlier process stopped."""
    patches, columns = test.features.patches, memory.counts.shape[1]
    classes = len(with_masks(test.split.source).classes)
    at_once = max(1, QUERIES_AT_ONCE // (patches.shape[1] * patches.shape[2]))
    done, confusion = progress.get(what) or (0, torch.zeros(classes, columns, dtype=torch.int64))
    for start in context.track(range(done, len(patches), at_once), f"test images, {what}"):
        part = patches[start : start + at_once, ..., : memory.features.width]
        predicted = predict_patches(part.flatten(0, 2), memory, search, config.temperature, context.device)
        for place, grid in enumerate(predicted.view(*part.shape[:3], columns), start):
            mask = test.mask(place) if config.full_resolution else Squash(config.size).mask(test.mask(place))
            found = predict_pixels(grid, *mask.shape).cpu()
            confusion = confusion + confusion_matrix(found, mask, classes, predicted_classes=columns)
        progress.keep(what, (start + len(part), confusion))
    return confusion


def _scores(config: InContextConfig, name: str, outcomes: list[Outcome], seeds: list[int]) -> Iterator[Score]:
    """Of one slice; no seeds: nothing was random."""
    absent: Literal["skip", "zero"] = "zero" if config.absent == "zero" else "skip"
    confusions = [outcome.confusion for outcome in outcomes]
    found = {"miou": [100 * mean_iou(confusion, absent) for confusion in confusions]}
    if config.hungarian:
        matched = [renamed(confusion, hungarian(confusion)) for confusion in confusions]
        found["miou_hungarian"] = [100 * mean_iou(confusion, absent) for confusion in matched]
    if config.search == "quantised":
        found["neighbour_recall"] = [outcome.recall for outcome in outcomes if outcome.recall is not None]
    for metric, values in found.items():
        yield Score(
            metric,
            sum(values) / len(values),
            resolution=f"{config.size}" + (", full masks" if config.full_resolution else ""),
            settings={"k": config.neighbours, "memory": config.memory or "all", "search": config.search},
            slice=name,
            values=tuple(values),
            seeds=tuple(seeds),
        )


PROTOCOL = Protocol(
    config=InContextConfig,
    run=run,
    # The defaults of open-hummingbird-eval, and the memory of Balazevic et al. (2023).
    presets={"hummingbird": {"memory": 10_240_000, "augment": True, "void": "background", "absent": "zero"}},
)
