"""The nearest-neighbour question that fits a run's images, whether they have labels or not."""

from collections import Counter
from dataclasses import dataclass

from franca.data.loader import DataConfig
from franca.data.sources import SamplePhotographs, Source
from franca.eval.images import EvalImages
from franca.eval.parts import evenly_spaced, split_in_two, without_labels
from franca.eval.views import CentralSquare, Half

MOST_NEIGHBOURS = 20
PORTRAYED = ("astronaut", "cat", "coffee", "coins", "flower", "motorcycle")  # sample photographs that figures show


@dataclass(frozen=True)
class Task:
    """Queries are to find neighbours of their own class in the memory. Without labels each image is its own class."""

    memory: EvalImages
    queries: EvalImages
    size: int  # side of the images in pixels
    classes: int
    k: int
    goal: str  # what a right answer is, in a few words
    explanation: str  # what is compared with what, in a sentence or two
    portrayed: list[int]  # numbers of the query images that figures show

    @property
    def chance(self) -> float:
        """Percentage that guessing reaches."""
        return 100 / self.classes


def choose_task(config: DataConfig, source: Source, size: int, limit: int = 1000) -> Task:
    """Sample photographs: the other half. Class folders: other images. Else: the other half of the same image.

    Class folders with one image each are treated as no labels.

    Args:
        source: the images of the run, built from ``config``.
        size: side in pixels. limit: most images in memory and in queries each, evenly spaced over the source.
    """
    if config.source == "photographs":
        return _photographs(config.channels, size)
    if source.labels is not None and max(Counter(source.labels).values()) > 1:
        return _classes(source, size, limit)
    return _halves(evenly_spaced(without_labels(source), limit), size)


def _photographs(channels: int, size: int) -> Task:
    memory, queries = SamplePhotographs("train", channels), SamplePhotographs("test", channels)
    assert memory.labels is not None
    windows = len(queries) // len(queries.classes)
    return Task(
        EvalImages(memory, CentralSquare(size)),
        EvalImages(queries, CentralSquare(size)),
        size,
        classes=len(memory.classes),
        k=neighbours(memory.labels),
        goal="right photograph found",
        explanation=f"Memory: {len(memory)} overlapping windows of the left halves of {len(memory.classes)} "
        f"photographs, which training saw. Queries: {len(queries)} windows of the right halves, which it never saw. "
        "The class of a window is its photograph.",
        portrayed=[queries.classes.index(name) * windows + windows // 3 for name in PORTRAYED],
    )


def _classes(source: Source, size: int, limit: int) -> Task:
    memory, queries = (evenly_spaced(part, limit) for part in split_in_two(source))
    assert memory.labels is not None
    return Task(
        EvalImages(memory, CentralSquare(size)),
        EvalImages(queries, CentralSquare(size)),
        size,
        classes=len(source.classes),
        k=neighbours(memory.labels),
        goal="right class folder found",
        explanation=f"The class of an image is its folder ({len(source.classes)} classes). Memory: {len(memory)} "
        f"images, queries: {len(queries)} others. Training saw the images of both, but never a label.",
        portrayed=_spread(len(queries)),
    )


def _halves(source: Source, size: int) -> Task:
    return Task(
        EvalImages(source, Half(size)),
        EvalImages(source, Half(size, second=True)),
        size,
        classes=len(source),
        k=1,
        goal="other half of the image found",
        explanation=f"These images have no labels, so each is a class of its own: one half of each of {len(source)} "
        "images looks for its other half among the other halves of all. The halves share no pixel; training saw both.",
        portrayed=_spread(len(source)),
    )


def neighbours(labels: list[int]) -> int:
    """k for this memory: 20, or the size of its smallest class if that is less."""
    return min(MOST_NEIGHBOURS, *Counter(labels).values())


def _spread(count: int) -> list[int]:
    """Numbers of six images spread over ``count``, fewer if there are fewer."""
    shown = min(len(PORTRAYED), count)
    return [(2 * place + 1) * count // (2 * shown) for place in range(shown)]
