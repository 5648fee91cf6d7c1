"""Multi-crop: two large crops and several small ones of one image, each changed at random in its own way (DINOv2)."""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from franca.data import pixel_ops
from franca.data.batch import Crops

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Probability of a blur for (first global, second global, local) crops.
BLURS = {
    "intended": (1.0, 0.1, 0.5),
    "inverted": (0.0, 0.9, 0.5),  # what DINOv2's and Franca's released code does
    "off": (0.0, 0.0, 0.0),
}


@dataclass
class CropConfig:
    """Options of multi-crop. The defaults are the paper's recipe.

    Sizes in pixels; scale: least and largest share of the image's area. The others but blur are probabilities.
    colour_jitter, grayscale and solarize apply to 3-channel images only and turn themselves off for others;
    solarize applies to the second global crop. mean, std: per channel, of values between 0 and 1.
    """

    global_size: int = 224
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    local_size: int = 98
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    local_count: int = 8
    flip: float = 0.5
    colour_jitter: float = 0.8
    grayscale: float = 0.2
    solarize: float = 0.2
    blur: str = "intended"
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))

    def __post_init__(self) -> None:
        for name in ("global_size", "local_size"):
            if getattr(self, name) < 8:
                raise ValueError(f"data.crops.{name}={getattr(self, name)}: choose at least 8 pixels")
        if self.local_count < 0:
            raise ValueError(f"data.crops.local_count={self.local_count}: choose 0 or more")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(
                    f"data.crops.{name}={scale}: give two shares [least, largest], 0 < least <= largest <= 1"
                )
        for name in ("flip", "colour_jitter", "grayscale", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.crops.{name}={getattr(self, name)}: choose a probability from 0 to 1")
        if self.blur not in BLURS:
            raise ValueError(f"data.crops.blur={self.blur!r}: choose one of {', '.join(BLURS)}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"data.crops.mean={self.mean}, std={self.std}: give one of each per channel")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(
                f"data.crops.mean={self.mean}, std={self.std}: give numbers, and for std numbers above 0 alone"
            )


class MultiCrop:
    """One image (C, H, W) uint8 -> two global crops and ``local_count`` local ones, float32, normalised."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config
        self.mean = 255 * torch.tensor(config.mean).view(-1, 1, 1)
        self.std = 255 * torch.tensor(config.std).view(-1, 1, 1)
        self.blurs = BLURS[config.blur]

    def __call__(self, image: Tensor, generator: Generator) -> Crops:
        """Draws all crops from ``generator`` and nothing else."""
        config = self.config
        first, second, local = self.blurs
        return Crops(
            global_=[
                self._crop(image, config.global_size, config.global_scale, first, 0.0, generator),
                self._crop(image, config.global_size, config.global_scale, second, config.solarize, generator),
            ],
            local=[
                self._crop(image, config.local_size, config.local_scale, local, 0.0, generator)
                for _ in range(config.local_count)
            ],
        )

    def _crop(
        self, image: Tensor, size: int, scale: list[float], blur: float, solarize: float, generator: Generator
    ) -> Tensor:
        config = self.config
        in_colour = image.shape[0] == 3
        crop = pixel_ops.random_resized_crop(image, size, scale, generator)
        flip, jitter, gray, blurs, solarizes = pixel_ops.draw(generator, 5)
        if flip < config.flip:
            crop = crop.flip(-1)
        if in_colour and jitter < config.colour_jitter:
            crop = pixel_ops.colour_jitter(crop, generator)
        if in_colour and gray < config.grayscale:
            crop = pixel_ops.grayscale(crop)
        if blurs < blur:
            crop = pixel_ops.gaussian_blur(crop, generator)
        if in_colour and solarizes < solarize:
            crop = pixel_ops.solarize(crop)
        return (crop - self.mean).div_(self.std)
