"""Python programs in the place of a training that is asked to stop, and signals to this process at the right time."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from franca.children import STOPPED

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
OBEYS = f"import signal, sys; signal.signal(15, lambda *_: sys.exit({STOPPED})); {SLEEP}"
IGNORES = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEP}"
FAILS = f"import signal, sys; signal.signal(15, lambda *_: sys.exit('the disk is full')); {SLEEP}"
SAVES = f"""
import signal, sys, time
def save(*_):
    time.sleep(1)
    sys.exit({STOPPED})
signal.signal(15, save)
{SLEEP}
"""


def wait_for(true: Callable[[], bool]) -> None:
    """Until it is."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def sent_when(ready: Callable[[], bool], *numbers: int) -> Iterator[None]:
    """Signals to this process once ``ready`` is true, a moment apart; none once this is left."""
    over = threading.Event()

    def send() -> None:
        while not ready():
            if over.wait(0.02):
                return
        for number in numbers:
            if over.is_set():
                return
            os.kill(os.getpid(), number)
            over.wait(0.3)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
