"""Reading ahead in a thread, so that a slow file system or network delays nobody who has other things to do."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE = 0.2  # seconds between looks at whether anyone still waits
FAREWELL = 5.0  # seconds that a reader gets to end; one that hangs is left behind


def read_ahead(items: Generator[Item, None, None], depth: int) -> Iterator[Item]:
    """The same items and the same errors; up to ``depth`` of them are made before they are asked for."""
    reader = _Reader(items, depth)
    reader.start()
    try:
        while True:
            item, error = reader.results.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # else it refers to itself through this frame, and lives on with all it refers to
            if item is None:
                return
            yield item
    finally:
        reader.unwanted.set()
        reader.join(FAREWELL)


class _Reader(threading.Thread, Generic[Item]):
    """Fills ``results`` with (item, None), and at the end with (None, None) or (None, error)."""

    def __init__(self, items: Generator[Item, None, None], depth: int) -> None:
        super().__init__(name="franca-read-ahead", daemon=True)
        self.items = items
        self.results: queue.Queue[tuple[Item | None, Exception | None]] = queue.Queue(depth)
        self.unwanted = threading.Event()

    def run(self) -> None:
        last: tuple[None, Exception | None] = (None, None)
        try:
            for item in self.items:
                self._put((item, None))
                if self.unwanted.is_set():
                    break
        except Exception as error:
            last = (None, error)
        finally:
            self.items.close()  # in this thread: it closes files and ends commands
        self._put(last)

    def _put(self, result: tuple[Item | None, Exception | None]) -> None:
        while not self.unwanted.is_set():
            try:
                self.results.put(result, timeout=PATIENCE)
                return
            except queue.Full:
                continue
