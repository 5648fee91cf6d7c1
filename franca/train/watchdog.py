"""Where does it hang? When no step is completed for too long, each process writes the stacks of all its threads.

Each has a clock and a file of its own and asks nobody, for whoever hangs answers nobody. Nothing is stopped: a process
group has its own limit for that (``parallel.timeout_minutes``), and the stacks are written before it.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from franca.train.rank_log import LogFile

# The first that is free: a scheduler's notice may use one of them. Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
EXCUSE = 6  # times the limit of a step, for what may take longer than a step
LAST_MOMENT = 0.8  # of the process group's limit: a dump that comes with its end may be cut off
ANSWER = 0.3  # seconds that a worker gets to write its stacks
BLIND = 5.0  # seconds above the limit, after which faulthandler writes by itself


@dataclass(frozen=True)
class Progress:
    """The last that was heard of the training."""

    step: int
    doing: str
    at: float  # of time.monotonic
    limit: float  # seconds until it counts as hanging


class HangWatchdog:
    """While entered, dumps the stacks to ``file`` after ``seconds`` without a step, and again after as many more.

    The start, saving and evaluating may take ``EXCUSE`` times as long, as far as the process group waits for them
    (``group_seconds``, infinite for one process). seconds: 0 watches nothing. say: called after a dump with one
    sentence; may be exchanged.

    ``kill -USR1`` to the process (-USR2, where a scheduler uses the other) dumps at once, watched or not.
    """

    def __init__(self, file: LogFile, seconds: float, group_seconds: float, say: Callable[[str], None]) -> None:
        self.file = file
        self.patience = min(EXCUSE * seconds, LAST_MOMENT * group_seconds)
        self.seconds = min(seconds, self.patience)
        self.say = say
        self.last = Progress(0, "starting", time.monotonic(), self.patience)

    def completed(self, step: int) -> None:
        """A step is done, and the next one is expected."""
        self.last = Progress(step, "training", time.monotonic(), self.seconds)

    @contextmanager
    def excused(self, doing: str) -> Iterator[None]:
        """What is done inside may take longer."""
        self.last = Progress(self.last.step, doing, time.monotonic(), self.patience)
        yield
        self.completed(self.last.step)

    def __enter__(self) -> "HangWatchdog":
        self._older = {child.pid for child in multiprocessing.active_children()}  # without our answer to the signal
        self.signal = next((number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL), None)
        if self.signal:
            faulthandler.register(self.signal, self.file.fileno())  # workers that are forked from here inherit it
        self.last = Progress(0, "starting", time.monotonic(), self.patience)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="franca-watchdog", daemon=True)
        if self.seconds:
            self._lives()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self.signal:
            faulthandler.unregister(self.signal)

    def _watch(self) -> None:
        seen, dumps = self.last, 0  # dumps: since then
        over = False
        while not over:
            over = self._ended.wait(min(self.seconds / 10, 5.0))
            self._lives()
            last, now = self.last, time.monotonic()
            if last is not seen:
                if dumps:
                    self._write(f"it went on, and is at step {last.step}, {last.doing}")
                seen, dumps = last, 0
            if now - last.at > last.limit * (dumps + 1):
                dumps += 1
                self._dump(last, now - last.at)

    def _lives(self) -> None:
        """Native code that keeps the interpreter's lock stops this class too: then faulthandler, which needs none."""
        faulthandler.dump_traceback_later(self.seconds + BLIND, file=self.file.fileno())

    def _dump(self, last: Progress, waited: float) -> None:
        self._write(
            f"no step was completed in the last {duration(waited)}; the last was {last.step}, then: {last.doing}. "
            f"Stacks of process {os.getpid()}, whose main thread is {threading.main_thread().ident:#018x}:"
        )
        faulthandler.dump_traceback(self.file.fileno())
        for child in multiprocessing.active_children():
            forked = type(child).__name__ == "ForkProcess"  # Windows has no such class
            if self.signal and child.pid and forked and child.pid not in self._older:
                self._write(f"stacks of its worker {child.name}, process {child.pid}:")
                with suppress(ProcessLookupError):
                    os.kill(child.pid, self.signal)
                time.sleep(ANSWER)
        self._write("end of the stacks")
        self.say(
            f"WARNING: no step was completed in the last {duration(waited)} (the last was {last.step}, then: "
            f"{last.doing}). Each process writes where it stands into its own file beside {self.file.name}"
            if self.file.is_open
            else f"WARNING: the start takes more than {duration(waited)}. Each process writes where it stands to stderr"
        )

    def _write(self, text: str) -> None:
        self.file.write_now(f"{time.strftime('%Y-%m-%d %H:%M:%S')} HANG {text}\n")


def duration(seconds: float) -> str:
    """In words, with the unit that suits it."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} minutes"
