"""Features extracted once: on disk, memory-mapped, extracted by all processes together, continued when interrupted.

One folder per question (model, images, view, precision) is a `FeatureTable`. Images that can't be read are tried again
by every evaluation.

Legend: N images, B images of a batch, h x w patches, D width.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from franca.distributed import on_main, rank, sum_over_ranks, world_size
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.feature_table import MISSING, READY, STORED_AS, UNREADABLE, FeatureTable
from franca.eval.images import decode
from franca.eval.tokens import Tokens, class_token, mean_patch
from franca.eval.views import View
from franca.files import held

logger = logging.getLogger(__name__)

MOST_BLOCKS = 4  # that any protocol asks for
NAMED = 20  # unreadable images that are named; all of them are in the table's folder

Embed = Callable[[Tensor, int], list[Tokens]]  # uint8 (B, C, S, S), blocks -> tokens of the last blocks
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
Parts = Mapping[str, Callable[[list[Tokens]], Tensor]]  # file -> its rows (B, …) from the tokens of a batch


@dataclass(frozen=True)
class ImageFeatures:
    """One row per readable image, on the CPU, memory-mapped in the type that the store keeps."""

    cls: Tensor  # (N, blocks, D) class tokens after each of the last blocks, the last one last; without: mean patches
    mean_patch: Tensor  # (N, 1, D) mean of the patch tokens after the last block
    index: Tensor  # (N,) int64: number of the image in its source
    labels: Tensor | None  # (N,) int64


@dataclass(frozen=True)
class PatchFeatures:
    """One grid per readable image, on the CPU, memory-mapped in the type that the store keeps."""

    patches: Tensor  # (N, h, w, D) after the last norm
    index: Tensor  # (N,) int64: number of the image in its source


class FeatureStore:
    """What a backbone makes of data sets, kept below a folder.

    Args:
        folder: of the store; several models and data sets share it.
        model_hash: of the weights and all else that decides the features.
        embed: the backbone at work.
        track: shows progress.
        precision: in words, that of ``embed``: part of what identifies the features.
        stored_as: fp16 halves the space of fp32; bf16 has its range, with fewer digits.
        batch_size, workers: of the extraction; they change no row beyond rounding.
    """

    def __init__(
        self,
        folder: Path,
        model_hash: str,
        embed: Embed,
        track: Track,
        precision: str = "fp32",
        stored_as: str = "fp16",
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        if stored_as not in STORED_AS:
            raise EvalError(f"--store {stored_as}: choose one of {', '.join(STORED_AS)}")
        self.folder, self.model_hash, self.embed, self.track = folder, model_hash, embed, track
        self.precision, self.stored_as = precision, stored_as
        self.batch_size, self.workers = batch_size, workers
        self.left_out: dict[str, int] = {}  # split -> how many of its images can't be read

    def images(self, split: OpenedSplit, view: View, blocks: int = 1) -> ImageFeatures:
        """Class tokens and mean patches of every readable image. All processes call it together.

        What was stored with more blocks serves fewer.

        Raises:
            EvalError: no image can be read, features that are not finite, or no room for them.
        """
        parts: Parts = {
            "cls": lambda tokens: torch.stack([class_token(token) for token in tokens], dim=1),
            "mean_patch": lambda tokens: mean_patch(tokens[-1])[:, None],
        }
        deeper = (self._table(split, view, parts, more) for more in range(blocks, MOST_BLOCKS + 1))
        stored = on_main(lambda: next((table.blocks for table in deeper if table.is_whole()), blocks))
        tensors, index = self._extract(self._table(split, view, parts, stored), split, view, parts)
        labels = split.source.labels
        return ImageFeatures(
            cls=tensors["cls"][:, -blocks:],
            mean_patch=tensors["mean_patch"],
            index=index,
            labels=None if labels is None else torch.tensor(labels)[index],
        )

    def patches(self, split: OpenedSplit, view: View) -> PatchFeatures:
        """Patch tokens of every readable image. All processes call it together. Raises EvalError as `images`."""
        parts: Parts = {"patches": lambda tokens: tokens[-1].patches}
        tensors, index = self._extract(self._table(split, view, parts, 1), split, view, parts)
        return PatchFeatures(**tensors, index=index)

    def _table(self, split: OpenedSplit, view: View, parts: Parts, blocks: int) -> FeatureTable:
        about = {
            "model": self.model_hash,
            "data": split.images_hash or split.hash,
            "images": len(split.source),
            "view": repr(view),
            "parts": sorted(parts),
            "blocks": blocks,
            "precision": self.precision,
        }
        return FeatureTable(self.folder, about, self.stored_as)

    def _extract(
        self, table: FeatureTable, split: OpenedSplit, view: View, parts: Parts
    ) -> tuple[dict[str, Tensor], Tensor]:
        with ExitStack() as stack:
            on_main(lambda: self._open(table, stack, view, parts))
            todo = np.array_split(table.todo(), world_size())[rank()].tolist()
            _together(lambda: None)  # nobody writes before all have read what there is to do
            _together(lambda: self._fill(table, split, view, parts, todo))
            self.left_out[f"{split.name} {split.split}"] = on_main(lambda: _finish(table, split, sorted(parts)))
        return {part: table.tensor(part) for part in parts}, table.index()

    def _open(self, table: FeatureTable, stack: ExitStack, view: View, parts: Parts) -> None:
        """Make the files of a new table; hold an unfinished one, waiting for other runs."""
        if table.is_whole() and not len(table.todo()):
            return
        table.folder.mkdir(parents=True, exist_ok=True)
        said = "another process extracts the same features into %s: waiting until it has ended"
        stack.enter_context(held(table.folder, lambda: logger.warning(said, table.folder)))
        if not table.exists():
            sample = view(torch.zeros(3, 64, 64, dtype=torch.uint8))
            tokens = self.embed(sample[None], table.blocks)
            table.create({part: tuple(make(tokens).shape[1:]) for part, make in parts.items()})

    def _fill(self, table: FeatureTable, split: OpenedSplit, view: View, parts: Parts, numbers: list[int]) -> None:
        """Rows of these images, and why some can't be read."""
        batches = decode(split.source, view, numbers, self.workers, self.batch_size)
        total = -(-len(numbers) // self.batch_size)
        reasons: dict[int, str] = {}
        for batch, unreadable in self.track(batches, f"features of {split.name} {split.split}", total):
            rows = batch.index.numpy()
            if len(rows):
                tokens = self.embed(batch.pixels, table.blocks)
                table.write(rows, {part: make(tokens) for part, make in parts.items()}, split.source.name)
            if unreadable:
                table.mark(np.array(list(unreadable)), UNREADABLE)
                reasons |= unreadable
        table.explain(reasons)


def _together(work: Callable[[], None]) -> None:
    """Work of every process; where it fails in one, all stop, and none waits for it."""
    error: Exception | None = None
    try:
        work()
    except Exception as found:
        error = found
    failed = sum_over_ranks([int(error is not None)])[0]
    if error is not None:
        raise error
    if failed:
        raise EvalError(f"{failed} of {world_size()} processes failed; their own lines say why")


def _finish(table: FeatureTable, split: OpenedSplit, parts: list[str]) -> int:
    """Where images can't be read, the rows of the others come first; says which are left out, and returns how many.

    Raises EvalError where none can be read, or rows are missing.
    """
    ready, unreadable, missing = (len(table.images_in(state)) for state in (READY, UNREADABLE, MISSING))
    if missing:
        raise EvalError(f"{missing} rows of {table.folder} were not written: the same command extracts them")
    name = f"{split.name} {split.split}"
    if unreadable:
        for reason in table.reasons()[:NAMED]:
            logger.warning("left out: %s", reason)
        if not ready:
            raise EvalError(f"none of {unreadable} images of {name} can be read; the first: {table.reasons()[0]}")
        logger.warning("%d of %d images of %s can't be read and are left out", unreadable, ready + unreadable, name)
        table.pack(parts)
    return unreadable
