"""An endless stream of batches whose content is a function of (seed, position) alone."""

import os
import re
import sys
from collections import deque
from collections.abc import Generator, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from franca.data.ahead import read_ahead
from franca.data.batch import LoadedBatch, Sample, SkippedFile, collate
from franca.data.config import DataConfig, spare_cores
from franca.data.decode import decode_image
from franca.data.errors import DataError, TooManyBrokenFiles, UnreadableImage, WorkerDied
from franca.data.mixture import Mixture, describe
from franca.data.multi_crop import MultiCrop
from franca.data.random_streams import generator, shuffled, stream_seed
from franca.data.skip_log import LOADS_BEFORE_VERDICT, SkipLog, listed
from franca.data.sources import Source
from franca.data.sources.shards import Shards
from franca.data.work import StreamTable, Work, plan

__all__ = ["DataConfig", "PretrainLoader", "SkipLog", "spare_cores"]

REPLACEMENTS = 50  # draws for one sample before the loader gives up


class PretrainLoader:
    """Batches for pretraining.

    Batch k of rank r, of R ranks, holds samples first to first + batch_size - 1, first = (k * R + r) * batch_size.
    Sample n shows image shuffled(n mod len) of epoch n div len, or the next image of the rank's streams of shards (see
    shard_streams), cropped and changed by (seed, n); masks are drawn from (seed, k * R + r). Workers change who makes
    a batch, never its content. They cut crops; colours, blur and normalisation follow where the batch is put to use
    (LoadedBatch.to), by numbers that the worker drew.
    pin_memory: put batches where an accelerator can fetch them by itself. skipped: what could not be read so far.
    """

    def __init__(
        self,
        source: Source | Shards | Mixture,
        config: DataConfig,
        seed: int,
        patch_size: int,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config = config
        self.pin_memory = pin_memory
        self.rank, self.world_size = rank, world_size
        self._mixture = source if isinstance(source, Mixture) else Mixture([source], [1.0])
        self.skipped = _skip_log(self._mixture, config.max_broken_share)
        self._batches = _Batches(self._mixture, config, seed, patch_size)
        self._images = 0  # given by all ranks
        self._table = StreamTable(self._mixture)
        for part in self._table.shards:
            self._table.own(part, rank, world_size)  # refuses too few streams at the start

    def state_dict(self) -> dict[str, Tensor]:
        """Where the loader stands after the last batch given.

        images: int64 scalar, samples given by all ranks; streams: (streams, 6) int64, rows of other ranks' streams are
        -1. So the state of the whole run is the element-wise maximum over ranks.
        """
        own = self._table.is_own(self.rank, self.world_size)
        return {"images": torch.tensor(self._images), "streams": self._table.rows.where(own[:, None], -1)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from the state of a whole run, on any number of ranks: no sample is repeated or lost.

        Raises DataError when it is that of other shards.
        """
        rows = state["streams"]
        if rows.shape != self._table.rows.shape or bool((rows < 0).any()):
            raise DataError(
                f"the saved position is of {len(rows)} streams of shards ({int((rows < 0).any(1).sum())} unknown), but "
                f"data describes {len(self._table.rows)}: continue with the same shards and data.shards.streams"
            )
        self._images = int(state["images"])
        self._table.rows.copy_(rows)

    def batches(self, start: int | None = None) -> Iterator[LoadedBatch]:
        """This rank's batches without end, from where the loader stands, or from its batch ``start`` on.

        Raises TooManyBrokenFiles, WorkerDied when a worker process is lost, and DataError when shards stand elsewhere
        than at ``start``.
        """
        if start is not None:
            images = start * self.world_size * self.config.batch_size
            if self._table.shards and images != self._images:
                raise DataError(
                    f"shards can't be entered at batch {start}: they stand at image {self._images}; load the state "
                    "that was saved with that batch"
                )
            self._images = images
        return self._from_here()

    def _from_here(self) -> Iterator[LoadedBatch]:
        given: deque[dict[int, list[int]]] = deque()
        works = self._works(given)
        batches = iter(self._data_loader(works))
        try:
            while True:
                batch = self._next(batches)
                self.skipped.add(batch.cut)
                self._images += self.world_size * self.config.batch_size
                for place, row in given.popleft().items():
                    self._table.rows[place] = torch.tensor(row)
                yield batch
        finally:
            del batches  # ends the workers now, even while an error still refers to this frame
            works.close()

    def _works(self, given: deque[dict[int, list[int]]]) -> Generator[Work | DataError, None, None]:
        """What the workers are to do; what each batch changes in the table is put into ``given``, in the same order."""
        size, workers = self.config.batch_size, self.config.workers
        works = plan(self._mixture, self._table, self._batches.seed, size, self._images, self.rank, self.world_size)
        try:
            for work, rows in read_ahead(works, depth=workers + 1) if self._table.shards and workers else works:
                given.append(rows)
                yield work
        except DataError as error:  # takes its turn behind the batches before it; raised here it would leave workers
            yield type(error)(*error.args)  # without the traceback

    def _next(self, batches: Iterator[LoadedBatch | DataError]) -> LoadedBatch:
        try:
            batch = next(batches)
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: lost while it handed a batch over
            if isinstance(error, RuntimeError) and not re.match(r"DataLoader worker \(pid", str(error)):
                raise
            raise WorkerDied(
                f"{error}. Memory or shared memory (/dev/shm) may have run out: lower data.workers (now "
                f"{self.config.workers}) or data.prefetch (now {self.config.prefetch}). "
                "With data.workers=0 the error shows in the main process"
            ) from error
        if isinstance(batch, DataError):
            del batches  # what the error refers to through this frame would live on, workers included
            raise batch
        return batch

    def _data_loader(self, works: Iterator[Work | DataError]) -> DataLoader:
        workers = self.config.workers
        return DataLoader(
            self._batches,
            batch_size=None,  # the dataset's items are whole batches
            sampler=works,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            worker_init_fn=_leave_process_group,
            multiprocessing_context=_start_method(self.config.start_method) if workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else the loader draws a seed from the run's random state
        )


class _Batches(Dataset):
    """Work -> batch, or the error to raise in the main process; what the workers run."""

    def __init__(self, mixture: Mixture, config: DataConfig, seed: int, patch_size: int) -> None:
        side = config.crops.global_size // patch_size
        if side * patch_size != config.crops.global_size:
            raise ValueError(
                f"data.crops.global_size={config.crops.global_size} does not divide by the patch size {patch_size}: "
                f"choose {side * patch_size or patch_size} or {(side + 1) * patch_size}"
            )
        self.mixture = mixture
        self.seed = seed
        self.batch_size = config.batch_size
        self.channels = config.channels
        self.multi_crop = MultiCrop(config.crops)
        self.mask_config = config.mask
        self.mask = config.mask.build((side, side))

    def __getitem__(self, work: Work | DataError) -> LoadedBatch | DataError:
        if isinstance(work, DataError):
            return work
        try:
            samples = [self._sample(work, place) for place in range(self.batch_size)]
        except DataError as error:  # raised here, it would come out wrapped in the worker's traceback
            return error
        number = work.first // self.batch_size
        batch = collate(samples, self.mask, self.mask_config, generator("masks", self.seed, number))
        return LoadedBatch(batch, self.multi_crop.changes_of([each.crops for each in samples]), self.multi_crop.norm)

    def _sample(self, work: Work, place: int) -> Sample:
        number = work.first + place
        part, order = self.mixture.deal(self.seed, number)
        if place in work.raw:
            image, skipped = self._decoded(work, place)
        else:
            image, skipped = self._first_readable(number, part, order)
        return Sample(self.multi_crop(image, generator("crops", self.seed, number)), number, skipped, part)

    def _first_readable(self, number: int, part: int, order: int) -> tuple[Tensor, list[SkippedFile]]:
        """Image ``order`` of a part; when it is broken, others drawn from (seed, sample number, attempt)."""
        source = self.mixture.parts[part]
        assert not isinstance(source, Shards)
        length = len(source)
        epoch, position = divmod(order, length)
        key = ("order", self.seed, epoch) if part == 0 else ("order", self.seed, part, epoch)
        index = shuffled(position, length, *key)
        skipped: list[SkippedFile] = []
        for attempt in range(REPLACEMENTS):
            try:
                return source.load(index), skipped
            except UnreadableImage as error:
                skipped.append(SkippedFile(error.name, error.reason, part))
                index = stream_seed("replacement", self.seed, number, attempt) % length
        raise TooManyBrokenFiles(f"{REPLACEMENTS} files in a row cannot be read, the first: {listed(skipped)}")

    def _decoded(self, work: Work, place: int) -> tuple[Tensor, list[SkippedFile]]:
        """The image of shards at ``place``; when it is broken, another one of the same batch or of the next."""
        skipped = list(work.raw[place].skipped)
        others = work.candidates(place)
        key = ("replacement", self.seed, work.first + place)
        replacements = (others[shuffled(turn, len(others), *key)] for turn in range(min(len(others), REPLACEMENTS)))
        broken: list[SkippedFile] = []
        for raw in (work.raw[place], *replacements):
            try:
                return decode_image(raw.content, raw.name, self.channels), skipped + broken
            except UnreadableImage as error:
                broken.append(SkippedFile(error.name, error.reason, raw.part))
        raise TooManyBrokenFiles(f"{len(broken)} images in a row cannot be read, the first: {listed(broken)}")


def _skip_log(mixture: Mixture, max_share: float) -> SkipLog:
    counts = [LOADS_BEFORE_VERDICT if isinstance(part, Shards) else len(part) for part in mixture.parts]
    names = [f"part {number + 1} ({describe(part)})" for number, part in enumerate(mixture.parts)]
    parts = list(zip(names, counts, strict=True)) if len(counts) > 1 else []
    return SkipLog(max_share, sum(counts), parts)


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
