"""A log file for each process: what it said and warned of, the error that ended it, and where it hung."""

import faulthandler
import logging
import os
import platform
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from franca import __version__
from franca.distributed import rank, world_size
from franca.train.stopping import Interrupted

SAID = logging.getLogger("franca.said")  # what rank 0 prints by itself, for its file alone
SAID.propagate = False
SAID.setLevel(logging.INFO)
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def log_file(output: Path, number: int) -> Path:
    """The log of one rank; a continued run appends to it."""
    return output / "logs" / f"rank_{number}.log"


class LogFile:
    """Text at the end of a file, at once; what a full disk doesn't take is lost, and the run is not disturbed."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        """Append."""
        with suppress(OSError):
            self._file.write(text.encode(errors="replace"))

    def fileno(self) -> int:
        """For whoever writes past Python."""
        return self._file.fileno()

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RankLog:
    """While entered, this process's log file gets all log records, what rank 0 says, and warnings of Python.

    An error that leaves it is recorded with its traceback, a crash of the interpreter with its stacks. Raises OSError
    when the file can't be opened.
    """

    def __init__(self, output: Path) -> None:
        self.path = log_file(output, rank())

    def __enter__(self) -> "RankLog":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self.file = stack.enter_context(LogFile(self.path))
            self.handler = logging.StreamHandler(self.file)
            self.handler.setFormatter(logging.Formatter(FORMAT))
            self.handler.setLevel(logging.INFO)  # checkpointing logs all that it does
            for logger in (logging.getLogger(), SAID):
                logger.addHandler(self.handler)
                stack.callback(logger.removeHandler, self.handler)
            stack.enter_context(self._warnings())
            if not faulthandler.is_enabled():
                faulthandler.enable(self.file.fileno())
                stack.callback(faulthandler.disable)
            self._stack = stack.pop_all()
        self._write(
            logging.INFO,
            f"rank {rank()} of {world_size()}, process {os.getpid()} on {socket.gethostname()}, franca {__version__}, "
            f"torch {torch.__version__}, Python {platform.python_version()}: {' '.join(sys.argv)}",
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Interrupted):
            self._write(logging.INFO, str(error))
        elif error is not None:
            self._write(logging.ERROR, "this ended the run:", (kind, error, trace))
        self._stack.close()

    def _write(self, level: int, message: str, error: Any = None) -> None:
        self.handler.handle(logging.LogRecord("franca.train", level, __file__, 0, message, None, error))

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        """Warnings go into the file too, and on to whoever showed them before."""
        before = warnings.showwarning

        def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any, **options: Any) -> None:
            self._write(logging.WARNING, f"{filename}:{lineno}: {category.__name__}: {message}")
            before(message, category, filename, lineno, *rest, **options)

        warnings.showwarning = show
        try:
            yield
        finally:
            warnings.showwarning = before
