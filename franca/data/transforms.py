"""How an image is shown to a model for evaluation: always the same way, nothing random."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD

CROPS = ("center", "resize")
CENTER = 224 / 256  # side of the central crop / shorter side of the image


def eval_transform(
    size: int,
    crop: str = "center",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Callable[[Tensor], Tensor]:
    """A function from (C, H, W) uint8 to (C, size, size) float32, normalised per channel.

    crop: "center" shows the middle, a square whose side is 224 / 256 of the image's shorter side; "resize" the whole
    image, squeezed to a square. Bicubic with antialias.
    """
    if crop not in CROPS:
        raise ValueError(f"crop={crop!r}: choose one of {', '.join(CROPS)}")
    if size < 1:
        raise ValueError(f"size={size}: choose a number of pixels above 0")
    shift = 255 * torch.tensor(mean).view(-1, 1, 1)
    scale = 255 * torch.tensor(std).view(-1, 1, 1)

    def transform(image: Tensor) -> Tensor:
        if crop == "center":  # before resizing: a strip of 1 x 10,000 pixels would grow huge
            side = max(1, round(min(image.shape[-2:]) * CENTER))
            image = F.center_crop(image, [side, side])
        image = F.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return (image - shift) / scale

    return transform
