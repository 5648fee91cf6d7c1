"""Which pixels of an image evaluation looks at: an image of any size becomes a square, its mask likewise.

A view's ``repr`` names it: stored features and reports carry it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from franca.eval.errors import EvalError


@dataclass(frozen=True)
class ResizeCrop:
    """Shorter side to ``resize`` pixels, then the central square of ``crop``: classification (DINOv2, Sec. 7.1)."""

    resize: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise EvalError(f"{self}: crop must lie between 1 and resize")

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.crop

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, crop, crop), bicubic with antialias."""
        return F.center_crop(_shorter_side(image, self.resize, InterpolationMode.BICUBIC), [self.crop] * 2)

    def mask(self, mask: Tensor) -> Tensor:
        """(H, W) -> (crop, crop): the same place, nearest pixel."""
        return F.center_crop(_shorter_side(mask[None], self.resize, InterpolationMode.NEAREST_EXACT), [self.crop] * 2)[
            0
        ]


@dataclass(frozen=True)
class Squash:
    """The whole image, whatever its shape, as a square of ``size`` pixels: dense tasks."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise EvalError(f"{self}: size must be above 0")

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, size, size), bilinear with antialias."""
        return F.resize(image, [self.size] * 2, interpolation=InterpolationMode.BILINEAR, antialias=True)

    def mask(self, mask: Tensor) -> Tensor:
        """(H, W) -> (size, size), nearest pixel."""
        return F.resize(mask[None], [self.size] * 2, interpolation=InterpolationMode.NEAREST_EXACT)[0]


@dataclass(frozen=True)
class CentralSquare:
    """The central square of the image, as large as it can be, resized to ``size`` pixels."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise EvalError(f"{self}: size must be above 0")

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, size, size), bicubic with antialias."""
        square = F.center_crop(image, [min(image.shape[-2:])] * 2)  # first: a strip of 1 x 10,000 would grow huge
        return F.resize(square, [self.size] * 2, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def mask(self, mask: Tensor) -> Tensor:
        """(H, W) -> (size, size): the same square, nearest pixel."""
        square = F.center_crop(mask[None], [min(mask.shape[-2:])] * 2)
        return F.resize(square, [self.size] * 2, interpolation=InterpolationMode.NEAREST_EXACT)[0]


@dataclass(frozen=True)
class Half:
    """The central square of one half: left and right of a wide image, upper and lower of a tall one."""

    size: int
    second: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, size, size). The halves share no pixel when the side is even."""
        return CentralSquare(self.size)(self.part(image))

    def part(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, h, w): the half itself; one pixel at least."""
        height, width = image.shape[-2:]
        if width >= height:
            return image[..., width // 2 :] if self.second else image[..., : (width + 1) // 2]
        return image[..., height // 2 :, :] if self.second else image[..., : (height + 1) // 2, :]


View = Callable[[Tensor], Tensor]  # any of these, or another function of an image with a ``repr`` that names it


def _shorter_side(image: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """(C, H, W) -> its shorter side at ``size``, cut beforehand to the middle where it is longer than needed."""
    height, width = image.shape[-2:]
    longest = 4 * min(height, width)  # what lies further out is never seen, and a thin strip would grow huge
    image = F.center_crop(image, [min(height, longest), min(width, longest)])
    return F.resize(image, [size], interpolation=interpolation, antialias=interpolation == InterpolationMode.BICUBIC)
