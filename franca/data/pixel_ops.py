"""Random changes of one uint8 image (C, H, W). Every one draws from the generator it is given and from nothing else."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.v2 import functional as F

from franca.data.changes import BLUR_SIGMA, BRIGHTNESS, CONTRAST, HUE, SATURATION
from franca.data.photometric import BLUR_REACH, turn_hue

ASPECTS = (3 / 4, 4 / 3)
BOX_DRAWS = 40  # always as many, so that later draws do not depend on the image


class Box(NamedTuple):
    """A rectangle, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw(generator: Generator, count: int = 1) -> list[float]:
    """``count`` numbers uniform in [0, 1)."""
    values: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return values


def random_resized_crop(image: Tensor, size: int, scale: list[float], generator: Generator) -> Tensor:
    """A random rectangle, resized to (C, size, size) bicubically with antialias.

    scale: least and largest share of the area. Width / height is log-uniform between 3/4 and 4/3.
    """
    return resized_crop(image, random_box(image.shape[-2], image.shape[-1], scale, generator), size)


def resized_crop(image: Tensor, box: Box, size: int) -> Tensor:
    """Rectangle ``box`` of (C, H, W) uint8, resized to (C, size, size) bicubically with antialias.

    Twice as quick where the channels of a pixel lie together in memory, as decoders leave them; the result has the
    same order.
    """
    top, left, height, width = box
    # Seen as a batch whose one image is the whole: else the order of its memory is not recognised.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    cut = batch[..., top : top + height, left : left + width]
    resized: Tensor = interpolate(cut, (size, size), mode="bicubic", antialias=True)[0]
    return resized


def random_box(height: int, width: int, scale: list[float], generator: Generator) -> Box:
    """The rectangle that `random_resized_crop` takes."""
    return box_from(draw(generator, BOX_DRAWS), height, width, scale)


def box_from(draws: Sequence[float], height: int, width: int, scale: list[float]) -> Box:
    """The rectangle that BOX_DRAWS numbers uniform in [0, 1) choose from an image of ``height`` x ``width``."""
    low, high = math.log(ASPECTS[0]), math.log(ASPECTS[1])
    for a, b, c, d in zip(*[iter(draws)] * 4, strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * a)
        aspect = math.exp(low + (high - low) * b)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return Box(int(c * (height - box_height + 1)), int(d * (width - box_width + 1)), box_height, box_width)
    # Too long an image for any of ten draws: its middle, cut to the nearest allowed aspect.
    box_height = min(height, max(1, round(width / ASPECTS[0])))
    box_width = min(width, max(1, round(height * ASPECTS[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def colour_jitter(image: Tensor, generator: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of an RGB image, in random order, strengths uniform around no change."""
    *signed, hue = (2 * value - 1 for value in draw(generator, 4))
    brightness, contrast, saturation = signed
    steps = [
        lambda x: F.adjust_brightness(x, 1 + BRIGHTNESS * brightness),
        lambda x: F.adjust_contrast(x, 1 + CONTRAST * contrast),
        lambda x: F.adjust_saturation(x, 1 + SATURATION * saturation),
        lambda x: shift_hue(x, HUE * hue),
    ]
    for step in torch.randperm(len(steps), generator=generator).tolist():
        image = steps[step](image)
    return image


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """Turns the hue of an RGB image by ``shift`` (1 is the whole circle) and leaves HSV's saturation and value.

    A quarter of the time of torchvision's way through an HSV image, and rounded where that one truncates.
    """
    return turn_hue(image.float()[None], shift)[0].round_().to(torch.uint8)


def grayscale(image: Tensor) -> Tensor:
    """An RGB image without its colours, still three channels."""
    return F.rgb_to_grayscale(image, num_output_channels=3)


def gaussian_blur(image: Tensor, generator: Generator) -> Tensor:
    """A Gaussian of 9 taps, sigma uniform in [0.1, 2.0] pixels, image mirrored at its borders.

    One pass per axis, each the sum of 9 shifted images: a tenth of the time of one 9 x 9 convolution.
    """
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draw(generator)[0]
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(BLUR_REACH + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    weights = [tap / total for tap in taps]
    blurred = pad(image.float().unsqueeze(0), [BLUR_REACH] * 4, mode="reflect").squeeze(0)
    for axis in (-2, -1):
        blurred = _smooth(blurred, weights, axis)
    return blurred.round_().to(torch.uint8)


def _smooth(image: Tensor, weights: list[float], axis: int) -> Tensor:
    """Symmetric smoothing along one axis, which becomes shorter by the reach on both sides."""
    length = image.shape[axis] - 2 * BLUR_REACH
    smooth = image.narrow(axis, BLUR_REACH, length) * weights[0]
    for distance, weight in enumerate(weights[1:], start=1):
        smooth.add_(image.narrow(axis, BLUR_REACH - distance, length), alpha=weight)
        smooth.add_(image.narrow(axis, BLUR_REACH + distance, length), alpha=weight)
    return smooth
