"""A log file for each process: what it said and warned of, the error that ended it, and where it hung."""

import faulthandler
import logging
import os
import platform
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from franca import __version__
from franca.train.stopping import Interrupted

SAID = logging.getLogger("franca.said")  # what rank 0 prints by itself, for its file alone
SAID.propagate = False
SAID.setLevel(logging.INFO)
STDERR = "stderr"
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def log_file(output: Path, number: int) -> Path:
    """The log of one rank; a continued run appends to it."""
    return output / "logs" / f"rank_{number}.log"


class LogFile:
    """Text at the end of a file, at once; what a full disk doesn't take is lost, and the run is not disturbed.

    Until :meth:`open` names the file, what is written waits in memory, and the descriptor leads to stderr. The number
    of the descriptor stays the same, for those who were given it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.name = STDERR
        self._waiting: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether there is a file yet."""
        return self.name != STDERR

    def open(self, path: Path) -> None:
        """Write into this file from now on, first all that waited. Raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, self._descriptor)
        os.close(descriptor)
        self.name = str(path)
        waiting, self._waiting = self._waiting, []
        for text in waiting:
            self._append(text)

    def write(self, text: str) -> None:
        """Append."""
        encoded = text.encode(errors="replace")
        if self.is_open:
            self._append(encoded)
        else:
            self._waiting.append(encoded)

    def write_now(self, text: str) -> None:
        """Append; while there is no file yet, show it too."""
        if not self.is_open:
            self._append(text.encode(errors="replace"))
        self.write(text)

    def fileno(self) -> int:
        """For whoever writes past Python."""
        return self._descriptor

    def _append(self, text: bytes) -> None:
        with suppress(OSError):
            os.write(self._descriptor, text)

    def __enter__(self) -> "LogFile":
        try:
            self._descriptor = os.dup(2)
        except OSError:  # a process without one
            self._descriptor = os.open(os.devnull, os.O_WRONLY)
        if self.path is not None:
            self.open(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self.name = STDERR


class RankLog:
    """While entered, this process's log gets all log records, what rank 0 says, and warnings of Python.

    An error that leaves it is recorded with its traceback, a crash of the interpreter with its stacks. The log waits
    in memory until :meth:`open` says where the run lives.

    number, count: rank and number of processes, known before they have met. home: asked where an error belongs that
    comes before the file is open; None: to nobody's folder, and it is shown on stderr by one of several processes.
    """

    def __init__(
        self, number: int = 0, count: int = 1, home: Callable[[BaseException], Path | None] = lambda _: None
    ) -> None:
        self.number, self.count = number, count
        self.home = home
        self.file = LogFile()
        self._recorded: BaseException | None = None

    def open(self, output: Path) -> None:
        """From now on the log lies in this folder. Raises OSError when it can't be written."""
        path = log_file(output, self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file.open(path)

    def __enter__(self) -> "RankLog":
        with ExitStack() as stack:
            stack.enter_context(self.file)
            self.handler = logging.StreamHandler(self.file)
            self.handler.setFormatter(logging.Formatter(FORMAT))
            self.handler.setLevel(logging.INFO)  # checkpointing logs all that it does
            stack.enter_context(heard_by(self.handler))
            SAID.addHandler(self.handler)
            stack.callback(SAID.removeHandler, self.handler)
            stack.enter_context(self._warnings())
            if not faulthandler.is_enabled():
                faulthandler.enable(self.file.fileno())
                stack.callback(faulthandler.disable)
            self._stack = stack.pop_all()
        self._write(
            logging.INFO,
            f"rank {self.number} of {self.count}, process {os.getpid()} on {socket.gethostname()}, franca "
            f"{__version__}, torch {torch.__version__}, Python {platform.python_version()}: {' '.join(sys.argv)}",
        )
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: Any) -> None:
        try:
            if error is not None:
                self.record(error)
        finally:
            self._stack.close()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write down an error that ends what is inside before anything is cleared away, which may hang."""
        try:
            yield
        except BaseException as error:
            self.record(error)
            raise

    def record(self, error: BaseException) -> None:
        """Write down, once, what ends the run."""
        if error is self._recorded:
            return
        self._recorded = error
        if isinstance(error, Interrupted):
            self._write(logging.INFO, str(error))
        else:
            self._write(logging.ERROR, "this ended the run:", (type(error), error, error.__traceback__))
        if not self.file.is_open:
            home = self.home(error)
            if home is not None:
                with suppress(OSError):
                    self.open(home)
            elif self.count > 1:
                words = "".join(traceback.format_exception_only(error))
                print(f"rank {self.number} of {self.count} on {socket.gethostname()}: {words}", end="", file=sys.stderr)

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


@contextmanager
def heard_by(handler: logging.Handler) -> Iterator[None]:
    """All records from the handler's level on reach it; everyone else gets what he got before."""
    root = logging.getLogger()
    before, levels = root.level, [(other, other.level) for other in root.handlers]
    stand_in = None if root.handlers else logging.lastResort  # it shows warnings only while nobody else listens
    for other, level in levels:
        other.setLevel(max(level, before))
    root.setLevel(min(before, handler.level))
    for added in (handler, stand_in):
        if added is not None:
            root.addHandler(added)
    try:
        yield
    finally:
        for added in (handler, stand_in):
            if added is not None:
                root.removeHandler(added)
        root.setLevel(before)
        for other, level in levels:
            other.setLevel(level)
