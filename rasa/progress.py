"""How far a pass over the images has come."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal for a bar


class PassProgress:
    """A bar with speed and time left on a terminal, a line every ten seconds in a log."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = self.told = time.monotonic()
        self.bar = Progress(
            TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total} crops"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar.disable = not self.bar.console.is_terminal
        self.task = self.bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if kind is None:
            logger.info("%s: %d crops in %.1f s", self.what, self.done, time.monotonic() - self.started)

    def add(self, crops: int) -> None:
        """So many crops more are done."""
        self.done += crops
        self.bar.update(self.task, completed=self.done)
        now = time.monotonic()
        if self.bar.disable and now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            speed = self.done / (now - self.started)
            left = (self.total - self.done) / speed
            logger.info("%s: %d of %d crops, %.1f a second, %.0f s left", self.what, self.done, self.total, speed, left)
