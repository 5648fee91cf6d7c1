"""How an image is shown to a model for evaluation: always the same way, nothing random."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD

CROPS = ("center", "resize")
MARGIN = 256 / 224  # shorter side of the resized image / side of its central crop


def eval_transform(
    size: int,
    crop: str = "center",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Callable[[Tensor], Tensor]:
    """A function from (C, H, W) uint8 to (C, size, size) float32, normalised per channel.

    crop: "center" resizes the shorter side to size * 256 / 224 and keeps the middle; "resize" shows the whole image,
    squeezed to a square. Bicubic with antialias.
    """
    if crop not in CROPS:
        raise ValueError(f"crop={crop!r}: choose one of {', '.join(CROPS)}")
    if size < 1:
        raise ValueError(f"size={size}: choose a number of pixels above 0")
    shift = 255 * torch.tensor(mean).view(-1, 1, 1)
    scale = 255 * torch.tensor(std).view(-1, 1, 1)

    def transform(image: Tensor) -> Tensor:
        target = [size, size] if crop == "resize" else [round(size * MARGIN)]
        image = F.resize(image, target, interpolation=InterpolationMode.BICUBIC, antialias=True)
        if crop == "center":
            image = F.center_crop(image, [size, size])
        return (image - shift) / scale

    return transform
