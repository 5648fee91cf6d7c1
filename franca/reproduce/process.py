"""The run itself: franca.train in a process of its own, looked at while it trains."""

import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from threading import Thread
from typing import IO

from franca.children import SIGNALS, Child, Children
from franca.reproduce.errors import ReproduceError, Stopped

POLL = 0.5  # seconds between two looks
GRACE = 20.0  # seconds that the run has to save when looking at it has failed
LAST_WORDS = 6  # lines of a failed run that its error repeats
STOPPED_BY = {128 + number: number for number in SIGNALS}  # status -> signal


class TrainingProcess:
    """One start of a run; what it prints is handed on line by line.

    A signal (see `Children`) asks the run to save its state and stop; a second one kills it.

    arguments: of franca.train. say: prints a line.
    """

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self.arguments = ["-m", "franca.train", *arguments]
        self.say = say
        self.words: deque[str] = deque(maxlen=LAST_WORDS)

    def run(self, enough: Callable[[], bool]) -> None:
        """Until the run ends by itself, or ``enough``, asked every POLL seconds, is true: then it is stopped.

        Raises:
            Stopped: a signal came, or someone else stopped the run.
            ReproduceError: the run failed.
        """
        with Children(GRACE) as children:
            self.child = children.add(Child(self.arguments, subprocess.PIPE))
            reader = Thread(target=self._hand_on, args=(self.child.process.stdout,), daemon=True)
            reader.start()
            while (status := self.child.poll()) is None:
                if not self.child.asked and enough():
                    self.child.ask()
                time.sleep(POLL)
        reader.join()
        enough()
        if children.signal_number is not None:
            raise Stopped(children.signal_number, passed_on=True)
        if status in STOPPED_BY and not self.child.asked:
            raise Stopped(STOPPED_BY[status])
        if status not in (0, *STOPPED_BY):
            code = self.child.process.returncode
            how = f"status {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"
            said = "\n".join(f"  {line}" for line in self.words)
            raise ReproduceError(f"the training process ended with {how}; its last words:\n{said}")

    def _hand_on(self, output: IO[bytes]) -> None:
        with TextIOWrapper(output, errors="replace") as lines:
            for line in lines:
                self.words.append(line.rstrip())
                self.say(line.rstrip())
