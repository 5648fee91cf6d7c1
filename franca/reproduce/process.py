"""The run itself: franca.train in a process of its own, looked at while it trains."""

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from types import FrameType
from typing import IO

from franca.reproduce.errors import ReproduceError, Stopped

POLL = 0.5  # seconds between two looks
STOPPED = 128 + signal.SIGTERM  # status of a run that was asked to stop, and has saved its state
LAST_WORDS = 6  # lines of a failed run that its error repeats


class TrainingProcess:
    """One start of a run; what it prints is handed on line by line.

    SIGTERM and Ctrl-C are passed on once, as SIGTERM: the run saves its state and stops. A second signal kills.

    arguments: of franca.train. say: prints a line.
    """

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self.command = [sys.executable, "-u", "-m", "franca.train", *arguments]
        self.say = say
        self.words: deque[str] = deque(maxlen=LAST_WORDS)

    def run(self, enough: Callable[[], bool]) -> None:
        """Until the run ends by itself, or ``enough``, asked every POLL seconds, is true: then it is stopped.

        Raises:
            Stopped: a signal came, or someone else stopped the run.
            ReproduceError: the run failed.
        """
        with self._signals() as received:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            assert self.child.stdout is not None
            reader = Thread(target=self._hand_on, args=(self.child.stdout,), daemon=True)
            reader.start()
            try:
                asked = self._watch(enough)
            finally:
                self._send(signal.SIGKILL)
                self.child.wait()
                reader.join()
            enough()
        if received:
            raise Stopped(received[0])
        status = self.child.returncode
        ended = (STOPPED, -signal.SIGTERM)  # the second: before its handler was there, or after
        if status in ended and not asked:
            raise Stopped(signal.SIGTERM)
        if status not in (0, *ended):
            how = f"status {status}" if status > 0 else f"signal {-status} ({signal.Signals(-status).name})"
            said = "\n".join(f"  {line}" for line in self.words)
            raise ReproduceError(f"the training process ended with {how}; its last words:\n{said}")

    def _watch(self, enough: Callable[[], bool]) -> bool:
        """Returns whether it was asked to stop because there was enough."""
        asked = False
        while self.child.poll() is None:
            if not asked and enough():
                asked = True
                self._send(signal.SIGTERM)
            time.sleep(POLL)
        return asked

    def _hand_on(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.words.append(line.rstrip())
                self.say(line.rstrip())

    def _send(self, number: int) -> None:
        if self.child.poll() is None:
            self.child.send_signal(number)

    @contextmanager
    def _signals(self) -> Iterator[list[int]]:
        received: list[int] = []

        def pass_on(number: int, _: FrameType | None) -> None:
            if hasattr(self, "child"):
                self._send(signal.SIGKILL if received else signal.SIGTERM)
            received.append(number)

        earlier = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield received
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
