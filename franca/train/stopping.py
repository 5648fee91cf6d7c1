"""Asking a run to stop: signals are noted, and obeyed between two steps."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the same command continues it."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped at step {step} by {signal.Signals(signal_number).name}; the same command continues")
        self.signal_number = signal_number


class StopRequest:
    """While entered, SIGTERM and SIGINT set ``signal_number``; one more SIGINT raises KeyboardInterrupt at once.

    One more SIGTERM changes nothing: schedulers send it again at the time limit, while the state may still be saved.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> "StopRequest":
        self._earlier = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
