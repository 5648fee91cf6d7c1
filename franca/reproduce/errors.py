"""What can go wrong in a reproduction, besides the run itself."""

import signal


class ReproduceError(ValueError):
    """The command can't be carried out; the message names the value, where it came from, and what to do."""


class Stopped(Exception):
    """A signal ended the command; the same command continues.

    passed_on: the run was told, always as SIGTERM, and its own words speak of that one. at_once: the run was not waited
    for; else its state is saved.
    """

    def __init__(self, signal_number: int, passed_on: bool = False, at_once: bool = False) -> None:
        told = ", passed on to the run as SIGTERM" if passed_on and signal_number != signal.SIGTERM else ""
        how = f"by {signal.Signals(signal_number).name}{told}"
        where = " from the last state that it saved, or begins anew" if at_once else ""
        super().__init__(f"stopped {'at once' if at_once else how}; the same command continues the run{where}")
        self.signal_number = signal_number
