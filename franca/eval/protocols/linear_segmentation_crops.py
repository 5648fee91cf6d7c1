"""Random training crops of linear segmentation: resized, cut, flipped, with other colours, as mmsegmentation has them.

Sample n is a function of the seed and n alone: a run that goes on, and any number of workers, see the same crops.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from franca.data.errors import UnreadableImage
from franca.data.pixel_ops import draw, shift_hue
from franca.data.random_streams import generator
from franca.eval.datasets import VOID, SegmentationSource
from franca.eval.protocols.order import Order

logger = logging.getLogger(__name__)

ORDER = "linear segmentation order"
LONGEST = 2048  # pixels of the longer side, at most, where the shorter side gets the size of a crop
ATTEMPTS = 10  # to find a crop that one class doesn't fill
MOST_OF_ONE_CLASS = 0.75
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.1


@dataclass(frozen=True)
class CropSettings:
    """What becomes of a training image.

    size: side of the crop in pixels. ratio: the shorter side is resized to between these times size. fill: colour
    (0 to 255) where the image ends; the mask is void there.
    """

    size: int
    ratio: tuple[float, float]
    fill: tuple[int, ...]


def random_crop(image: Tensor, mask: Tensor, settings: CropSettings, random: Generator) -> tuple[Tensor, Tensor]:
    """(3, H, W) and (H, W) uint8 -> (3, size, size) and (size, size)."""
    low, high = settings.ratio
    ratio, flip = draw(random, 2)
    image, mask = resize_pair(image, mask, settings.size, low + (high - low) * ratio)
    top, left = _corner(mask, settings.size, random)
    box = slice(top, top + settings.size), slice(left, left + settings.size)
    image, mask = image[:, *box], mask[box]
    if flip < 0.5:
        image, mask = image.flip(-1), mask.flip(-1)
    return padded(distort_colours(image, random), settings.size, settings.fill), pad_mask(mask, settings.size)


def resize_pair(image: Tensor, mask: Tensor, size: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Both, with the same shape as `resize_image` gives."""
    image = resize_image(image, size, ratio)
    return image, F.resize(mask[None], list(image.shape[-2:]), InterpolationMode.NEAREST_EXACT)[0]


def resize_image(image: Tensor, size: int, ratio: float) -> Tensor:
    """Shorter side at ``size * ratio`` pixels, unless the longer one would pass ``2048 * ratio``."""
    height, width = image.shape[-2:]
    scale = ratio * min(size / min(height, width), LONGEST / max(height, width))
    shape = [max(1, round(height * scale)), max(1, round(width * scale))]
    return F.resize(image, shape, InterpolationMode.BILINEAR, antialias=True)


def padded(image: Tensor, size: int, fill: tuple[int, ...]) -> Tensor:
    """(C, H, W) with the colour ``fill`` on the right and below, at least ``size`` pixels each way."""
    height, width = (max(size, side) for side in image.shape[-2:])
    canvas = torch.tensor(fill, dtype=image.dtype).view(-1, 1, 1).repeat(1, height, width)
    canvas[:, : image.shape[-2], : image.shape[-1]] = image
    return canvas


def pad_mask(mask: Tensor, size: int) -> Tensor:
    """(H, W) with void on the right and below, ``size`` pixels each way."""
    return pad(mask, (0, size - mask.shape[-1], 0, size - mask.shape[-2]), value=VOID)


def _corner(mask: Tensor, size: int, random: Generator) -> tuple[int, int]:
    """Top left of a random crop in which no class has three quarters of the pixels, if ten attempts find one."""
    rooms = [max(0, side - size) + 1 for side in mask.shape]
    draws = iter(draw(random, 2 * ATTEMPTS))  # always as many: later draws don't depend on the image
    top, left = 0, 0
    for first, second in zip(draws, draws, strict=True):
        top, left = int(first * rooms[0]), int(second * rooms[1])
        part = mask[top : top + size, left : left + size]
        counts = torch.bincount(part[part != VOID].flatten(), minlength=2)
        if (counts > 0).sum() > 1 and counts.max() < MOST_OF_ONE_CLASS * counts.sum():
            break
    return top, left


def distort_colours(image: Tensor, random: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of an RGB image, each changed in one case of two.

    Contrast comes before or after saturation and hue. In HSV only saturation, or only hue, is changed.
    """
    chances, amounts = draw(random, 5), draw(random, 4)
    brightness, contrast, saturation, hue = (chance < 0.5 for chance in chances[:4])
    contrast_first = chances[4] < 0.5
    if brightness:
        image = _as_pixels(image.float() + BRIGHTNESS * (2 * amounts[0] - 1))
    if contrast and contrast_first:
        image = _as_pixels(image.float() * _between(CONTRAST, amounts[1]))
    if saturation:
        image = multiply_saturation(image, _between(SATURATION, amounts[2]))
    if hue:
        image = shift_hue(image, HUE * (2 * amounts[3] - 1))
    if contrast and not contrast_first:
        image = _as_pixels(image.float() * _between(CONTRAST, amounts[1]))
    return image


def multiply_saturation(image: Tensor, factor: float) -> Tensor:
    """HSV's saturation times ``factor``, at most 1; hue and value stay: channels move towards their largest."""
    pixels = image.float()
    value = pixels.amax(dim=0)
    chroma = value - pixels.amin(dim=0)
    strength = torch.minimum(torch.tensor(factor), value / chroma.clamp(min=1))
    return _as_pixels(value - (value - pixels) * strength)


def _between(bounds: tuple[float, float], place: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * place


def _as_pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


class _Samples(Dataset[tuple[Tensor, Tensor] | None]):
    """Sample n, from the image that stands at place n of an `Order`; None where it can't be read."""

    def __init__(self, source: SegmentationSource, settings: CropSettings, seed: int) -> None:
        self.source, self.settings, self.seed = source, settings, seed
        self.order = Order(len(source), ORDER, seed)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | None:
        index = int(self.order.at(number, 1))
        try:
            image, mask = self.source.load(index), self.source.mask(index)
        except UnreadableImage as error:
            logger.warning("left out: %s", error)
            return None
        return random_crop(image, mask, self.settings, generator("linear segmentation crop", self.seed, number))


def crop_batches(
    source: SegmentationSource, settings: CropSettings, seed: int, batch: int, steps: range, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 3, size, size) and masks (B, size, size) of each step, uint8; B is ``batch`` less broken ones."""
    loader = DataLoader(
        _Samples(source, settings, seed),
        batch_size=batch,
        sampler=range(steps.start * batch, steps.stop * batch),
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the loader draws its seed from the run's random state
    )
    for samples in loader:
        readable = [sample for sample in samples if sample is not None]
        if readable:
            yield torch.stack([image for image, _ in readable]), torch.stack([mask for _, mask in readable])
        else:
            yield torch.empty(0), torch.empty(0)
