"""What could not be read: counted, named in the log, and too much of it stops the run."""

import logging
from collections.abc import Sequence

from franca.data.batch import PretrainBatch, SkippedFile
from franca.data.errors import TooManyBrokenFiles

logger = logging.getLogger(__name__)

LOADS_BEFORE_VERDICT = 100  # or one epoch, if that is less
NAMES_LOGGED = 5


class SkipLog:
    """Counts files read and files skipped, logs the first names, and stops a run that skips too many.

    loads, broken: attempts to read a file, and those that failed. first: the first distinct files that failed.
    """

    def __init__(self, max_share: float, n_files: int) -> None:
        self.max_share = max_share
        self.loads_before_verdict = min(LOADS_BEFORE_VERDICT, n_files)
        self.loads = 0
        self.broken = 0
        self.first: list[SkippedFile] = []

    def add(self, batch: PretrainBatch) -> None:
        """Takes note of what was read for one batch. Raises TooManyBrokenFiles."""
        self.loads += batch.n_images + len(batch.skipped)
        for file in batch.skipped:
            self.broken += 1
            if len(self.first) < NAMES_LOGGED and file not in self.first:
                self.first.append(file)
                logger.warning("skipped %s: %s", file.name, file.reason)
            elif self.broken in (10, 100, 1000) or self.broken % 10_000 == 0:
                logger.warning("skipped %d of %d files read so far", self.broken, self.loads)
        if self.loads >= self.loads_before_verdict and self.broken > self.max_share * self.loads:
            raise TooManyBrokenFiles(
                f"{self.broken} of {self.loads} files read ({self.broken / self.loads:.0%}) are broken, more than "
                f"data.max_broken_share={self.max_share} allows: repair or remove them, or raise the limit. "
                f"The first: {listed(self.first)}"
            )


def listed(files: Sequence[SkippedFile]) -> str:
    """The first files and what is wrong with each, for a message."""
    return "; ".join(f"{file.name} ({file.reason})" for file in files[:NAMES_LOGGED])
