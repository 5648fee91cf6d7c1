"""Where images come from: a name for each source, and what every source offers."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from franca.data.sources.folder import ImageFolder
from franca.data.sources.photographs import SamplePhotographs
from franca.data.sources.tars import TarFolder


class Source(Protocol):
    """Images by number, 0 to len - 1, always in the same order.

    classes: names of the labels, [] without; labels: one class number per image, or None.
    """

    classes: list[str]

    @property
    def labels(self) -> list[int] | None: ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Tensor:
        """Image ``index``, (C, H, W) uint8. Raises UnreadableImage."""
        ...

    def name(self, index: int) -> str:
        """What a person calls image ``index``."""
        ...


# Shards and mixtures of sources, whose images have no numbers, are built by DataConfig alone.
SOURCES: dict[str, Callable[[str, int], Source]] = {
    "folder": ImageFolder,
    "photographs": SamplePhotographs,
    "tars": TarFolder,
}
