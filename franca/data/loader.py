"""An endless stream of batches whose content is a function of (seed, batch number) alone."""

import itertools
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from franca.data.batch import PretrainBatch, Sample, SkippedFile, collate
from franca.data.errors import DataError, TooManyBrokenFiles, UnreadableImage, WorkerDied
from franca.data.masking import MaskConfig
from franca.data.multi_crop import CropConfig, MultiCrop
from franca.data.random_streams import generator, shuffled, stream_seed
from franca.data.skip_log import SkipLog, listed
from franca.data.sources import SOURCES, Source

REPLACEMENTS = 50  # draws for one sample before the loader gives up


def spare_cores() -> int:
    """Worker processes by default: one core less than there are, at most 8."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed - 1, 8)


@dataclass
class DataConfig:
    """Where images come from and how they become batches.

    source: one of SOURCES. path: the folder; for "photographs" the split (train, test or all).
    channels: of the images, see decode.read_image. batch_size: images per micro-batch.
    workers: processes that decode and augment; 0 does it in the main process; by default one core less than there
    are, at most 8. prefetch: batches each worker keeps ready.
    start_method: how workers start: fork (quick, the choice of "auto" on Linux), spawn or forkserver (safe beside
    threads and some network libraries, some seconds slower).
    max_broken_share: share of unreadable files above which the run stops.
    """

    source: str = "folder"
    path: str = ""
    channels: int = 3
    batch_size: int = 32
    workers: int = field(default_factory=spare_cores)
    prefetch: int = 2
    start_method: str = "auto"
    max_broken_share: float = 0.1
    crops: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source={self.source!r}: choose one of {', '.join(SOURCES)}")
        for name, least in (("channels", 1), ("batch_size", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)}: choose {least} or more")
        methods = ["auto", *multiprocessing.get_all_start_methods()]
        if self.start_method not in methods:
            raise ValueError(f"data.start_method={self.start_method!r}: choose one of {', '.join(methods)}")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share={self.max_broken_share}: choose a share from 0 to 1")
        if len(self.crops.mean) not in (1, self.channels):
            raise ValueError(
                f"data.crops.mean={self.crops.mean} has {len(self.crops.mean)} values, but data.channels="
                f"{self.channels}: give data.crops.mean and data.crops.std one value per channel"
            )

    def build_source(self) -> Source:
        """The images themselves. Raises DataError when there are none."""
        return SOURCES[self.source](self.path, self.channels)


class PretrainLoader:
    """Batches for pretraining.

    Sample n = batch number * batch_size + place shows image shuffled(n mod len) of epoch n div len, augmented by
    (seed, n); masks are drawn from (seed, batch number). Workers change who computes a batch, never its content.
    pin_memory: put batches where an accelerator can fetch them by itself. skipped: what could not be read so far.
    """

    def __init__(
        self, source: Source, config: DataConfig, seed: int, patch_size: int, pin_memory: bool = False
    ) -> None:
        self.config = config
        self.pin_memory = pin_memory
        self.skipped = SkipLog(config.max_broken_share, len(source))
        self._batches = _Batches(source, config, seed, patch_size)

    def batches(self, start: int = 0) -> Iterator[PretrainBatch]:
        """Batches start, start + 1, … without end.

        Raises TooManyBrokenFiles, and WorkerDied when a worker process is lost.
        """
        batches = iter(self._data_loader(start))
        try:
            while True:
                batch = self._next(batches)
                self.skipped.add(batch)
                yield batch
        finally:
            del batches  # ends the workers now, even while an error still refers to this frame

    def _next(self, batches: Iterator[PretrainBatch | DataError]) -> PretrainBatch:
        try:
            batch = next(batches)
        except RuntimeError as error:
            if not re.match(r"DataLoader worker \(pid", str(error)):
                raise
            raise WorkerDied(
                f"{error}. Memory or shared memory (/dev/shm) may have run out: lower data.workers (now "
                f"{self.config.workers}) or data.prefetch (now {self.config.prefetch}). "
                "With data.workers=0 the error shows in the main process"
            ) from error
        if isinstance(batch, DataError):
            raise batch
        return batch

    def _data_loader(self, start: int) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            self._batches,
            batch_size=None,  # the dataset's items are whole batches
            sampler=itertools.count(start),
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            worker_init_fn=_leave_process_group,
            multiprocessing_context=_start_method(self.config.start_method) if workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else the loader draws a seed from the run's random state
        )


class _Batches(Dataset):
    """Batch number -> batch, or the error to raise in the main process; what the workers run."""

    def __init__(self, source: Source, config: DataConfig, seed: int, patch_size: int) -> None:
        side = config.crops.global_size // patch_size
        if side * patch_size != config.crops.global_size:
            raise ValueError(
                f"data.crops.global_size={config.crops.global_size} does not divide by the patch size {patch_size}: "
                f"choose {side * patch_size or patch_size} or {(side + 1) * patch_size}"
            )
        self.source = source
        self.seed = seed
        self.batch_size = config.batch_size
        self.multi_crop = MultiCrop(config.crops)
        self.mask_config = config.mask
        self.mask = config.mask.build((side, side))

    def __getitem__(self, number: int) -> PretrainBatch | DataError:
        first = number * self.batch_size
        try:
            samples = [self._sample(n) for n in range(first, first + self.batch_size)]
        except DataError as error:  # raised here, it would come out wrapped in the worker's traceback
            return error
        return collate(samples, self.mask, self.mask_config, generator("masks", self.seed, number))

    def _sample(self, number: int) -> Sample:
        image, skipped = self._first_readable(number)
        return Sample(self.multi_crop(image, generator("crops", self.seed, number)), number, skipped)

    def _first_readable(self, number: int) -> tuple[Tensor, list[SkippedFile]]:
        """The image of sample ``number``; when it is broken, others drawn from (seed, number, attempt)."""
        length = len(self.source)
        epoch, position = divmod(number, length)
        index = shuffled(position, length, "order", self.seed, epoch)
        skipped: list[SkippedFile] = []
        for attempt in range(REPLACEMENTS):
            try:
                return self.source.load(index), skipped
            except UnreadableImage as error:
                skipped.append(SkippedFile(error.name, error.reason))
                index = stream_seed("replacement", self.seed, number, attempt) % length
        raise TooManyBrokenFiles(f"{REPLACEMENTS} files in a row cannot be read, the first: {listed(skipped)}")


def _start_method(name: str) -> str | None:
    """Multiprocessing's name for data.start_method; None keeps the platform's own choice."""
    if name != "auto":
        return name
    return "fork" if sys.platform == "linux" else None


def _leave_process_group(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach a whole process group; only the main process decides what they mean.

    Workers end when the loader ends, when the main process terminates them, or when it is gone.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
