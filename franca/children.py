"""Child processes that are asked to stop: by SIGTERM, on which a training saves its state, and killed if they don't."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

STOPPED = 128 + signal.SIGTERM  # status of a process that was asked to stop, whether it has saved or had nothing to
STOPS = {STOPPED: signal.SIGTERM, 128 + signal.SIGINT: signal.SIGINT}  # those that a training saves on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL = 0.1  # seconds between two looks at processes that are waited for


class Child:
    """A Python process in a session of its own: Ctrl-C reaches its parent alone, which passes it on once.

    arguments: of Python. output: a file or subprocess.PIPE, for all that it says. environment, folder: to run in; its
    parent's where None.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: IO[bytes] | int,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        self.asked = False  # to stop
        self.killed = False  # by this one's `kill`, while it ran
        self._began = time.monotonic()
        self._ended: float | None = None
        self._status: int | None = None

    def poll(self) -> int | None:
        """Exit status, 128 + n where signal n ended it; None while it runs. What it has left running is killed."""
        if self._status is None and (status := self.process.poll()) is not None:
            self._end_all()
            self._ended = time.monotonic()
            self._status = status if status >= 0 else 128 - status
        return self._status

    @property
    def seconds(self) -> float:
        """That it has run, as far as `poll` has seen."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal on which it stopped, its state saved or none there yet; None while it runs, if done, if failed."""
        return STOPS.get(self.poll() or 0)

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that ended it before it could end by itself."""
        return None if self.poll() is None or self.process.returncode >= 0 else signal.Signals(-self.process.returncode)

    @property
    def ending(self) -> str:
        """How it ended: "status 2", or "signal 9 (SIGKILL)"."""
        by = self.killed_by
        return f"signal {by:d} ({by.name})" if by else f"status {self.poll()}"

    def ask(self) -> None:
        """To stop, by SIGTERM; once, and only while it runs."""
        if not self.asked and self.poll() is None:
            self.asked = True
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once, with all that it has started."""
        if self.poll() is None:
            self.killed = True
            self._end_all()

    def _end_all(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nothing is left; on macOS nothing but zombies
            os.killpg(self.process.pid, signal.SIGKILL)


class Children:
    """Processes that stop together.

    While this is entered, the first of SIGTERM, SIGINT and SIGHUP is passed on to all as SIGTERM and kept as
    ``signal_number``; SIGINT after it, of a person who won't wait, kills them. The others change nothing: schedulers
    and closing terminals send them again, while states may still be saved. What is ignored, such as SIGHUP under nohup,
    stays so. On leaving, those that still run are asked to stop, and killed after ``grace`` seconds.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.all: list[Child] = []
        self.signal_number: int | None = None

    def __enter__(self) -> "Children":
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._earlier = {number: signal.signal(number, self._pass_on) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.ask()
        self.wait(self.grace)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def add(self, child: Child) -> Child:
        """One more."""
        self.all.append(child)
        if self.signal_number is not None:  # it came before this one could be told
            child.ask()
        return child

    def ask(self) -> None:
        """All to stop."""
        for child in self.all:
            child.ask()

    def wait(self, seconds: float) -> None:
        """Until all have ended; those that take longer than this are killed."""
        deadline = time.monotonic() + seconds
        while None in [child.poll() for child in self.all] and time.monotonic() < deadline:
            time.sleep(POLL)
        for child in self.all:
            child.kill()
            child.process.wait()

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            self.ask()
        elif number == signal.SIGINT:
            for child in self.all:
                child.kill()
