"""The run itself: franca.train in a process of its own, looked at while it trains."""

import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from threading import Thread
from typing import IO

from franca.children import Child, Children
from franca.reproduce.errors import ReproduceError, Stopped

POLL = 0.5  # seconds between two looks
GRACE = 20.0  # seconds that the run has to save when looking at it has failed
LAST_WORDS = 6  # lines of a failed run that its error repeats


class TrainingProcess:
    """One start of a run; what it prints is handed on line by line.

    A signal (see `Children`) asks the run to save its state and stop; Ctrl-C after it kills it.

    arguments: of franca.train. say: prints a line; where it can't, the run goes on all the same.
    """

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self.arguments = ["-m", "franca.train", *arguments]
        self.say = say
        self.words: deque[str] = deque(maxlen=LAST_WORDS)

    def run(self, enough: Callable[[], bool]) -> None:
        """Until the run ends by itself, or ``enough``, asked every POLL seconds, is true: then it is stopped.

        Raises:
            Stopped: a signal came, or someone else stopped the run; it has ended well, or was not waited for.
            ReproduceError: the run failed, or someone else killed it.
        """
        with Children(GRACE) as children:
            self.child = children.add(Child(self.arguments, subprocess.PIPE))
            reader = Thread(target=self._hand_on, args=(self.child.process.stdout,), daemon=True)
            reader.start()
            while self.child.poll() is None:
                if not self.child.asked and enough():
                    self._try_to_say("all that is to be compared is there: the run is asked to save and stop")
                    self.child.ask()
                time.sleep(POLL)
        reader.join()
        enough()
        stopped_by = self.child.stopped_by
        if children.signal_number is not None and self.child.killed:
            raise Stopped(children.signal_number, at_once=True)
        if self.child.poll() != 0 and stopped_by is None:
            said = "\n".join(f"  {line}" for line in self.words)
            raise ReproduceError(f"the training process ended with {self.child.ending}; its last words:\n{said}")
        if children.signal_number is not None:
            raise Stopped(children.signal_number, passed_on=True)
        if stopped_by is not None and not self.child.asked:
            raise Stopped(stopped_by)

    def _hand_on(self, output: IO[bytes]) -> None:
        with TextIOWrapper(output, errors="replace") as lines:
            for line in lines:
                self.words.append(line.rstrip())
                self._try_to_say(line.rstrip())  # unread, the run's next line would break it before it has saved

    def _try_to_say(self, line: str) -> None:
        with suppress(OSError):  # the terminal is gone
            self.say(line)
