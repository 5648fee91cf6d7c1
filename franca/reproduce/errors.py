"""What can go wrong in a reproduction, besides the run itself."""


class ReproduceError(ValueError):
    """The command can't be carried out; the message names the value, where it came from, and what to do."""


class Stopped(Exception):
    """A signal ended the command; the run's state is saved, and the same command continues."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped; the same command continues the run")
        self.signal_number = signal_number
