"""Random changes of one uint8 image (C, H, W). Every one draws from the generator it is given and from nothing else."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
ASPECTS = (3 / 4, 4 / 3)
BLUR_SIGMA = (0.1, 2.0)
BLUR_REACH = 4  # pixels each side: 9 taps
SOLARIZE_THRESHOLD = 128


def draw(generator: Generator, count: int = 1) -> list[float]:
    """``count`` numbers uniform in [0, 1)."""
    values: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return values


def random_resized_crop(image: Tensor, size: int, scale: list[float], generator: Generator) -> Tensor:
    """A random rectangle, resized to (C, size, size) bicubically with antialias.

    scale: least and largest share of the area. Width / height is log-uniform between 3/4 and 4/3.
    """
    top, left, height, width = random_box(image.shape[-2], image.shape[-1], scale, generator)
    box = image[:, top : top + height, left : left + width]
    return F.resize(box, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)


def random_box(height: int, width: int, scale: list[float], generator: Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of the rectangle that `random_resized_crop` takes."""
    low, high = math.log(ASPECTS[0]), math.log(ASPECTS[1])
    draws = draw(generator, 40)  # always as many, so that later draws do not depend on the image
    for a, b, c, d in zip(*[iter(draws)] * 4, strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * a)
        aspect = math.exp(low + (high - low) * b)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return int(c * (height - box_height + 1)), int(d * (width - box_width + 1)), box_height, box_width
    # Too long an image for any of ten draws: its middle, cut to the nearest allowed aspect.
    box_height = min(height, max(1, round(width / ASPECTS[0])))
    box_width = min(width, max(1, round(height * ASPECTS[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


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

    With the value V, the chroma C and the hue H in sixths of the circle, each channel is
    V - C * clamp(min(k, 4 - k), 0, 1), k = (n + H) mod 6, n = 5, 3, 1 for red, green, blue.
    A quarter of the time of torchvision's way through an HSV image, and rounded where that one truncates.
    """
    red, green, blue = image.float().unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    blue_or_green = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = torch.where(value == red, green - blue, blue_or_green) / chroma.clamp(min=1) + 6 * shift
    k = hue + torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k.sub_((k / 6).floor_(), alpha=6)
    return (value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)).round_().to(torch.uint8)


def grayscale(image: Tensor) -> Tensor:
    """An RGB image without its colours, still three channels."""
    return F.rgb_to_grayscale(image, num_output_channels=3)


def solarize(image: Tensor) -> Tensor:
    """Inverts every value from 128 up."""
    return F.solarize(image, SOLARIZE_THRESHOLD)


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
