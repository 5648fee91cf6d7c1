"""Images as evaluation sees them: the same pixels in the same order each time, unreadable files left out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from franca.data.errors import UnreadableImage
from franca.data.sources import Source

View = Callable[[Tensor], Tensor]  # uint8 (C, H, W) -> uint8 (C, h, w): a region of the image
DECODED_AT_ONCE = 32


def whole(image: Tensor) -> Tensor:
    """The image itself, (C, H, W)."""
    return image


def first_half(image: Tensor) -> Tensor:
    """Left half of a wide image, upper half of a tall one, (C, H, W) -> (C, h, w); one pixel at least."""
    height, width = image.shape[-2:]
    return image[..., : (width + 1) // 2] if width >= height else image[..., : (height + 1) // 2, :]


def second_half(image: Tensor) -> Tensor:
    """The other half, (C, H, W) -> (C, h, w). It shares no pixel with `first_half` when the side is even."""
    height, width = image.shape[-2:]
    return image[..., width // 2 :] if width >= height else image[..., height // 2 :, :]


def resize_square(image: Tensor, size: int) -> Tensor:
    """Central square, resized: uint8 (C, H, W) -> uint8 (C, size, size), bicubic with antialias."""
    square = F.center_crop(image, [min(image.shape[-2:])] * 2)  # first: a strip of 1 x 10,000 would grow huge
    return F.resize(square, [size, size], interpolation=F.InterpolationMode.BICUBIC, antialias=True)


@dataclass(frozen=True)
class ImageBatch:
    """Some images, in the order of the source."""

    pixels: Tensor  # (B, C, S, S) uint8
    index: Tensor  # (B,) int64: number of the image in its source


class EvalImages:
    """All readable images of a source at one size, always in the same order.

    Args:
        source: images with numbers from 0.
        size: side in pixels after resizing.
        view: the region of each image that is looked at.
        workers: processes that decode; 0 decodes in this one. They change no result.
        cache_bytes: keep the resized images in memory when all of them fit, so that a second pass decodes nothing.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        view: View = whole,
        workers: int = 0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        if size < 1 or not len(source):
            raise ValueError(f"{len(source)} images, size={size}: both must be above 0")
        self.source, self.size, self.view, self.workers = source, size, view, workers
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
        loader = DataLoader(
            _Resized(self.source, self.size, self.view),
            batch_size=DECODED_AT_ONCE,
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),  # else the loader draws its seed from the run's random state
        )
        for group in loader:
            self.skipped |= {index: result for index, result in group if isinstance(result, str)}
            readable = [(index, result) for index, result in group if isinstance(result, Tensor)]
            if readable:
                index = torch.tensor([index for index, _ in readable])
                yield ImageBatch(torch.stack([pixels for _, pixels in readable]), index)


class _Resized(Dataset[tuple[int, Tensor | str]]):
    """Image number -> its number and (C, S, S), or in words why it can't be read."""

    def __init__(self, source: Source, size: int, view: View) -> None:
        self.source, self.size, self.view = source, size, view

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            image = self.source.load(index)
        except UnreadableImage as error:
            return index, str(error)
        return index, resize_square(self.view(image), self.size)


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
