"""Images as evaluation sees them: the same pixels in the same order each time, unreadable files left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from franca.data.errors import UnreadableImage
from franca.data.sources import Source
from franca.eval.views import View

DECODED_AT_ONCE = 32


@dataclass(frozen=True)
class ImageBatch:
    """Some images, in the order of the source."""

    pixels: Tensor  # (B, C, S, S) uint8
    index: Tensor  # (B,) int64: number of the image in its source


class EvalImages:
    """All readable images of a source at one size, always in the same order.

    Args:
        source: images with numbers from 0.
        view: what becomes of each image.
        workers: processes that decode; 0 decodes in this one. They change no result.
        cache_bytes: keep the resized images in memory when all of them fit, so that a second pass decodes nothing.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        workers: int = 0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        if not len(source):
            raise ValueError("a source of 0 images: there is nothing to look at")
        self.source, self.view, self.workers = source, view, workers
        self.cache_bytes = cache_bytes
        self.skipped: dict[int, str] = {}  # number of an unreadable image -> "name: reason"
        self._cache: ImageBatch | None = None

    @property
    def labels(self) -> Tensor | None:
        """(len(source),) int64, unreadable images included; None for a source without labels."""
        return None if self.source.labels is None else torch.tensor(self.source.labels)

    def batches(self, batch_size: int = 64) -> Iterator[ImageBatch]:
        """Every readable image once.

        Raises:
            ValueError: no image is readable.
        """
        for batch in self._ready():
            for start in range(0, len(batch.index), batch_size):
                part = slice(start, start + batch_size)
                yield ImageBatch(batch.pixels[part], batch.index[part])

    def _ready(self) -> Iterable[ImageBatch]:
        """From memory when everything is there or fits there, else decoded on the way."""
        if self._cache is not None:
            return [self._cache]
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            first_reason = next(iter(self.skipped.values()))
            raise ValueError(f"none of {len(self.source)} images can be read, the first: {first_reason}")
        if first.pixels[0].numel() * len(self.source) > self.cache_bytes:
            return chain([first], decoded)
        self._cache = _join([first, *decoded])
        return [self._cache]

    def _decoded(self) -> Iterator[ImageBatch]:
        for batch, unreadable in decode(self.source, self.view, range(len(self.source)), self.workers):
            self.skipped |= unreadable
            if len(batch.index):
                yield batch


def decode(
    source: Source, view: View, numbers: Sequence[int], workers: int = 0, at_once: int = DECODED_AT_ONCE
) -> Iterator[tuple[ImageBatch, dict[int, str]]]:
    """The images of these numbers in their order, ``at_once`` together, and why some of them can't be read."""
    loader = DataLoader(
        _Viewed(source, view, numbers),
        batch_size=at_once,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the loader draws its seed from the run's random state
    )
    for group in loader:
        unreadable = {index: result for index, result in group if isinstance(result, str)}
        readable = [(index, result) for index, result in group if isinstance(result, Tensor)]
        index = torch.tensor([index for index, _ in readable], dtype=torch.int64)
        pixels = torch.stack([pixels for _, pixels in readable]) if readable else torch.empty(0, dtype=torch.uint8)
        yield ImageBatch(pixels, index), unreadable


class _Viewed(Dataset[tuple[int, Tensor | str]]):
    """Place in a list of image numbers -> the number and (C, S, S), or in words why it can't be read."""

    def __init__(self, source: Source, view: View, numbers: Sequence[int]) -> None:
        self.source, self.view, self.numbers = source, view, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        index = self.numbers[place]
        try:
            image = self.source.load(index)
        except UnreadableImage as error:
            return index, str(error)
        return index, self.view(image)


def _join(batches: list[ImageBatch]) -> ImageBatch:
    """One batch of all rows. The list is emptied on the way, so that the pixels never lie in memory twice."""
    index = torch.cat([batch.index for batch in batches])
    pixels = torch.empty(len(index), *batches[0].pixels.shape[1:], dtype=torch.uint8)
    row = 0
    while batches:
        part = batches.pop(0).pixels
        pixels[row : row + len(part)] = part
        row += len(part)
    return ImageBatch(pixels, index)
