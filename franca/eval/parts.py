"""Parts of a source: a split, or a sample spread over all of it."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from franca.data.sources import Source


class Part:
    """Some images of a source, by their numbers, as a source of its own."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.classes = source.classes
        self.labels = None if source.labels is None else [source.labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Tensor:
        """Image ``index`` of this part, (C, H, W) uint8. Raises UnreadableImage."""
        return self.source.load(self.indices[index])

    def name(self, index: int) -> str:
        """Its name in the source."""
        return self.source.name(self.indices[index])


def without_labels(source: Source) -> Part:
    """The same images, as if their folders meant nothing."""
    part = Part(source, range(len(source)))
    part.classes, part.labels = [], None
    return part


def evenly_spaced(source: Source, count: int) -> Source:
    """At most ``count`` images of a source, spread over all of it; the source itself if it has no more."""
    if len(source) <= count:
        return source
    return Part(source, [index * len(source) // count for index in range(count)])


def split_in_two(source: Source) -> tuple[Part, Part]:
    """Every other image of each class, and the rest: two parts of a labelled source that share no image."""
    if source.labels is None:
        raise ValueError("a split by class needs labels, and this source has none")
    seen: Counter[int] = Counter()
    parts: tuple[list[int], list[int]] = [], []
    for index, label in enumerate(source.labels):
        parts[seen[label] % 2].append(index)
        seen[label] += 1
    return Part(source, parts[0]), Part(source, parts[1])
