"""What can go wrong between a file and a batch."""


class DataError(RuntimeError):
    """The data cannot be used; the message names the place and says what to do."""


class EmptyFolder(DataError):
    """A folder that holds no usable image."""


class MissingFolder(DataError):
    """A path that is no folder."""


class MissingPackage(DataError):
    """A source whose optional package is not installed."""


class TooManyBrokenFiles(DataError):
    """More of the files than allowed cannot be read."""


class WorkerDied(DataError):
    """A worker process of the loader ended unexpectedly."""


class UnreadableImage(Exception):
    """One image cannot be decoded. name: where it came from; reason: what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
