"""How far a long piece of work on bytes has come, on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

LINES = 4  # where stderr is no terminal: a line for each quarter
REDRAW = 0.2  # seconds


class Progress:
    """One line that redraws itself on a terminal; a few lines in a log file, none for small files.

    Args:
        what: what is being done.
        total: bytes, None where it isn't known.
        done: bytes that were there before.
    """

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self.first, self.begin, self.shown = done, time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()
        self.quarter = self._quarter()

    def __enter__(self) -> Self:
        if self.total is None or self.total > 1 << 20:
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal and self.shown:
            self._show()
            print(file=sys.stderr)

    def add(self, count: int) -> None:
        """So many bytes more."""
        self.done += count
        if self.terminal and time.monotonic() - self.shown > REDRAW:
            self._show()
        elif not self.terminal and self.shown and self._quarter() > self.quarter:
            self.quarter = self._quarter()
            self._show()

    def _quarter(self) -> int:
        return self.done * LINES // self.total if self.total else 0

    def _show(self) -> None:
        self.shown = time.monotonic()
        speed = (self.done - self.first) / max(self.shown - self.begin, 1e-6)
        share = f" of {self.total / 1e6:.1f} MB ({self.done / self.total:.0%})" if self.total else " MB"
        rate = f", {speed / 1e6:.1f} MB/s" if self.done > self.first else ""
        line = f"{self.what}: {self.done / 1e6:.1f}{share}{rate}"
        print(
            f"\r{line:<79}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )
