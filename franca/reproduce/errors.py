"""What can go wrong in a reproduction, besides the run itself."""

import signal


class ReproduceError(ValueError):
    """The command can't be carried out; the message names the value, where it came from, and what to do."""


class Stopped(Exception):
    """A signal ended the command; the run's state is saved, and the same command continues.

    passed_on: the run was told, always as SIGTERM, and its own words speak of that one.
    """

    def __init__(self, signal_number: int, passed_on: bool = False) -> None:
        told = ", passed on to the run as SIGTERM" if passed_on and signal_number != signal.SIGTERM else ""
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}{told}; the same command continues the run")
        self.signal_number = signal_number
