"""What could not be read: counted, named in the log, and too much of it stops the run."""

import logging
from collections.abc import Sequence

from franca.data.batch import PretrainBatch, SkippedFile
from franca.data.errors import TooManyBrokenFiles

logger = logging.getLogger(__name__)

LOADS_BEFORE_VERDICT = 100  # or one epoch, if that is less
NAMES_LOGGED = 5
MILESTONES = (10, 100, 1000, 10_000)


class SkipLog:
    """Counts reads of files and those that failed, logs the first names, and stops a run that skips too many.

    loads, broken: attempts to read a file, and those that failed. first: the first distinct files that failed.
    shards: whole shards that gave nothing; how many may do so is judged where they are read.
    parts: (name, number of files) of each source of a mixture; each is judged by itself as well, so that a small one
    is not lost among the others.
    """

    def __init__(self, max_share: float, n_files: int, parts: Sequence[tuple[str, int]] = ()) -> None:
        self.max_share = max_share
        self.loads_before_verdict = min(LOADS_BEFORE_VERDICT, n_files)
        self.loads = 0
        self.broken = 0
        self.shards = 0
        self.first: list[SkippedFile] = []
        self.part_names = [name for name, _ in parts]
        self._parts = [SkipLog(max_share, n_part) for _, n_part in parts]

    def add(self, batch: PretrainBatch) -> None:
        """Takes note of what was read for one batch. Raises TooManyBrokenFiles."""
        self.loads += batch.n_images
        for file in batch.skipped:
            self._count(file)
            self._tell(file)
        self._judge("")
        for number, (name, part) in enumerate(zip(self.part_names, self._parts, strict=True)):
            part.loads += batch.parts.count(number)
            for file in batch.skipped:
                if file.part == number:
                    part._count(file)
            part._judge(f" from {name}")

    def _count(self, file: SkippedFile) -> None:
        if file.is_shard:
            self.shards += 1
            return
        self.loads += 1
        self.broken += 1
        if len(self.first) < NAMES_LOGGED and file not in self.first:
            self.first.append(file)

    def _tell(self, file: SkippedFile) -> None:
        if file.is_shard and (self.shards <= NAMES_LOGGED or self.shards in MILESTONES):
            logger.warning("skipped shard %s: %s (%d so far)", file.name, file.reason, self.shards)
        elif not file.is_shard and self.first[-1] is file:
            logger.warning("skipped %s: %s", file.name, file.reason)
        elif not file.is_shard and (self.broken in MILESTONES or self.broken % MILESTONES[-1] == 0):
            logger.warning("%d of %d reads failed so far", self.broken, self.loads)

    def _judge(self, origin: str) -> None:
        if self.loads >= self.loads_before_verdict and self.broken > self.max_share * self.loads:
            raise TooManyBrokenFiles(
                f"{self.broken} of {self.loads} reads of a file{origin} failed ({self.broken / self.loads:.2%}), more "
                f"than data.max_broken_share={self.max_share} allows: repair or remove such files, or raise the limit. "
                f"The first: {listed(self.first)}"
            )


def listed(files: Sequence[SkippedFile]) -> str:
    """The first files and what is wrong with each, for a message."""
    return "; ".join(f"{file.name} ({file.reason})" for file in files[:NAMES_LOGGED])
