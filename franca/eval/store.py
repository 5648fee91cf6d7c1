"""Features extracted once: on disk, memory-mapped, extracted by all processes together, continued when interrupted.

One folder per question (model, images, view, precision) holds a ``.npy`` file per kind of feature, with a row for every
image of the data set, and ``state.npy``, which says of every row whether it is there. Rows are forced to disk before
their state, so that a kill at any moment loses one batch.

Legend: N images, B images of a batch, h x w patches, D width.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from franca.distributed import is_main, on_main, rank, sum_over_ranks, world_size
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.images import decode
from franca.eval.tokens import Tokens
from franca.eval.views import View
from franca.files import held, replace_text

logger = logging.getLogger(__name__)

FORMAT = 1
MISSING, READY, UNREADABLE = 0, 1, 2  # state of a row
STORED_AS = {"fp32": (torch.float32, "<f4"), "fp16": (torch.float16, "<f2"), "bf16": (torch.bfloat16, "<i2")}
COPIED_AT_ONCE = 1024  # rows

Embed = Callable[[Tensor, int], list[Tokens]]  # uint8 (B, C, S, S), blocks -> tokens of the last blocks
Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
Parts = Mapping[str, Callable[[list[Tokens]], Tensor]]  # file -> its rows (B, …) from the tokens of a batch


@dataclass(frozen=True)
class ImageFeatures:
    """One row per readable image, on the CPU, memory-mapped in the type that the store keeps."""

    cls: Tensor  # (N, blocks, D) class tokens after each of the last blocks, the last one last; without: mean patches
    mean_patch: Tensor  # (N, blocks, D)
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
        channels: of the images.
        precision: in words, that of ``embed``: part of what identifies the features.
        stored_as: fp16 halves the space of fp32; bf16 has its range, with fewer digits.
        batch_size, workers: of the extraction; they change no row beyond rounding.
        track: shows progress.
    """

    def __init__(
        self,
        folder: Path,
        model_hash: str,
        embed: Embed,
        track: Track,
        channels: int = 3,
        precision: str = "fp32",
        stored_as: str = "fp16",
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        if stored_as not in STORED_AS:
            raise EvalError(f"--store {stored_as}: choose one of {', '.join(STORED_AS)}")
        self.folder, self.model_hash, self.embed, self.channels = folder, model_hash, embed, channels
        self.precision, self.stored_as = precision, stored_as
        self.batch_size, self.workers, self.track = batch_size, workers, track

    def images(self, split: OpenedSplit, view: View, blocks: int = 1) -> ImageFeatures:
        """Class tokens and mean patches of every readable image. All processes call it together.

        Raises:
            EvalError: no image can be read, features that are not finite, or no room for them.
        """
        parts: Parts = {
            "cls": lambda tokens: torch.stack([_class_token(token) for token in tokens], dim=1),
            "mean_patch": lambda tokens: torch.stack([_mean(token) for token in tokens], dim=1),
        }
        tensors, index = self._extract(split, view, parts, blocks)
        labels = split.source.labels
        return ImageFeatures(**tensors, index=index, labels=None if labels is None else torch.tensor(labels)[index])

    def patches(self, split: OpenedSplit, view: View) -> PatchFeatures:
        """Patch tokens of every readable image. All processes call it together. Raises EvalError as `images`."""
        tensors, index = self._extract(split, view, {"patches": lambda tokens: tokens[-1].patches}, 1)
        return PatchFeatures(**tensors, index=index)

    def _extract(self, split: OpenedSplit, view: View, parts: Parts, blocks: int) -> tuple[dict[str, Tensor], Tensor]:
        about = {
            "format": FORMAT,
            "model": self.model_hash,
            "data": split.hash,
            "images": len(split.source),
            "view": repr(view),
            "parts": sorted(parts),
            "blocks": blocks,
            "precision": self.precision,
            "stored_as": self.stored_as,
        }
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        table = _Table(self.folder / name, STORED_AS[self.stored_as])
        with ExitStack() as stack:
            on_main(lambda: self._open(table, stack, about, view, parts, blocks))
            todo = table.todo()
            sum_over_ranks([0])  # nobody writes before all have read what there is to do
            self._fill(table, split, view, parts, blocks, np.array_split(todo, world_size())[rank()].tolist())
            sum_over_ranks([0])
            on_main(lambda: _finish(table, split.name, sorted(parts)))
        return {part: table.tensor(part) for part in parts}, table.index()

    def _open(
        self, table: "_Table", stack: ExitStack, about: dict[str, Any], view: View, parts: Parts, blocks: int
    ) -> None:
        """Make the files of a new table; hold it against other runs."""
        table.folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(held(table.folder))
        except BlockingIOError:
            raise EvalError(
                f"another process extracts the same features into {table.folder}: wait until it has ended"
            ) from None
        if (table.folder / "about.json").is_file():
            return
        sample = view(torch.zeros(self.channels, 64, 64, dtype=torch.uint8))
        tokens = self.embed(sample[None], blocks)
        shapes = {part: tuple(make(tokens).shape[1:]) for part, make in parts.items()}
        try:
            table.create(about["images"], shapes)
        except OSError as error:
            raise EvalError(
                f"no room for features in {table.folder} ({error}): name another folder with --cache"
            ) from error
        replace_text(table.folder / "about.json", json.dumps(about, indent=1) + "\n")

    def _fill(
        self, table: "_Table", split: OpenedSplit, view: View, parts: Parts, blocks: int, numbers: list[int]
    ) -> None:
        """Rows of these images."""
        batches = decode(split.source, view, numbers, self.workers, self.batch_size)
        total = -(-len(numbers) // self.batch_size)
        for batch, unreadable in self.track(batches, f"features of {split.name} {split.split}", total):
            rows = batch.index.numpy()
            if len(rows):
                tokens = self.embed(batch.pixels, blocks)
                table.write(rows, {part: make(tokens) for part, make in parts.items()}, split.source.name)
            for number, reason in unreadable.items():
                logger.warning("left out: %s", reason)
                table.mark(np.array([number]), UNREADABLE)


class _Table:
    """The files of one question."""

    def __init__(self, folder: Path, stored_as: tuple[torch.dtype, str]) -> None:
        self.folder = folder
        self.dtype, self.code = stored_as

    def create(self, count: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for part, shape in shapes.items():
            open_memmap(self.file(part), "w+", np.dtype(self.code), (count, *shape)).flush()
        open_memmap(self.file("state"), "w+", np.dtype(np.uint8), (count,)).flush()

    def todo(self) -> NDArray[Any]:
        return np.flatnonzero(self.map("state") == MISSING)

    def index(self) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self.map("state") == READY))

    def write(self, rows: NDArray[Any], features: Mapping[str, Tensor], name: Callable[[int], str]) -> None:
        """Features onto disk, then that they are there. Raises EvalError for those that are not finite."""
        for part, values in features.items():
            stored = values.cpu().to(self.dtype)
            finite = stored.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                image = name(int(rows[int(finite.logical_not().nonzero()[0])]))
                raise EvalError(
                    f"features of {image} are not finite in {str(self.dtype).removeprefix('torch.')}: try --store fp32 "
                    "or --precision fp32, and check the weights"
                )
            mapped = self.map(part, "r+")
            mapped[rows] = stored.view(torch.int16).numpy() if self.code == "<i2" else stored.numpy()
            mapped.flush()
        self.mark(rows, READY)

    def mark(self, rows: NDArray[Any], state: int) -> None:
        mapped = self.map("state", "r+")
        mapped[rows] = state
        mapped.flush()

    def leave_out(self, part: str, rows: NDArray[Any]) -> None:
        """Beside the rows of all images, a file of these alone, in their order."""
        kept, whole = self.file(f"{part}.readable"), self.map(part)
        partial = kept.with_suffix(".partial")
        target = open_memmap(partial, "w+", whole.dtype, (len(rows), *whole.shape[1:]))
        for start in range(0, len(rows), COPIED_AT_ONCE):
            target[start : start + COPIED_AT_ONCE] = whole[rows[start : start + COPIED_AT_ONCE]]
        target.flush()
        partial.replace(kept)

    def tensor(self, part: str) -> Tensor:
        """Rows of the readable images, in their order."""
        kept = f"{part}.readable"
        found = torch.from_numpy(self.map(kept if self.file(kept).exists() else part, "c"))
        return found.view(torch.bfloat16) if self.code == "<i2" else found

    def file(self, part: str) -> Path:
        return self.folder / f"{part}.npy"

    def map(self, part: str, mode: Any = "r") -> "np.memmap[Any, Any]":
        return open_memmap(self.file(part), mode)


def _finish(table: _Table, name: str, parts: list[str]) -> None:
    """Where images can't be read, rows of the readable ones alone."""
    rows = table.index().numpy()
    unreadable = int((table.map("state") == UNREADABLE).sum())
    if not len(rows):
        raise EvalError(f"none of {unreadable} images of {name} can be read; the lines above say why")
    if unreadable and is_main():
        logger.warning("%d of %d images of %s can't be read and are left out", unreadable, unreadable + len(rows), name)
        for part in parts:
            if not table.file(f"{part}.readable").exists():
                table.leave_out(part, rows)


def _class_token(tokens: Tokens) -> Tensor:
    return _mean(tokens) if tokens.cls is None else tokens.cls


def _mean(tokens: Tokens) -> Tensor:
    """(B, h, w, D) -> (B, D)."""
    return tokens.patches.mean(dim=(1, 2))
