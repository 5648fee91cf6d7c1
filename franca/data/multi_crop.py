"""Multi-crop: two large crops and several small ones of one image, each changed at random in its own way (DINOv2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from franca.data.batch import Crops
from franca.data.changes import DRAWS, draw_changes
from franca.data.pixel_ops import BOX_DRAWS, box_from, resized_crop

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
    """One image (C, H, W) uint8 -> two global crops and ``local_count`` local ones, uint8, and what to change of each.

    norm: (2, C) float, mean and standard deviation of the channels for values between 0 and 255.
    """

    def __init__(self, config: CropConfig) -> None:
        kinds = (config.global_size, config.global_scale), (config.local_size, config.local_scale)
        self.kinds = [kinds[0]] * 2 + [kinds[1]] * config.local_count
        self.norm = 255 * torch.tensor([config.mean, config.std])
        self.chances = torch.tensor([config.flip, config.colour_jitter, config.grayscale, 0.0, 0.0]).repeat(
            len(self.kinds), 1
        )
        first, second, local = BLURS[config.blur]
        self.chances[:, 3] = torch.tensor([first, second, *[local] * config.local_count])
        self.chances[1, 4] = config.solarize

    def __call__(self, image: Tensor, generator: Generator) -> Crops:
        """Draws everything about all crops from ``generator`` and nothing else."""
        draws = torch.rand(len(self.kinds), BOX_DRAWS + DRAWS, generator=generator, dtype=torch.float64)
        height, width = image.shape[-2:]
        cut = [
            resized_crop(image, box_from(row, height, width, scale), size)
            for row, (size, scale) in zip(draws[:, :BOX_DRAWS].tolist(), self.kinds, strict=True)
        ]
        return Crops(cut[:2], cut[2:], draws[:, BOX_DRAWS:])

    def changes_of(self, crops: Sequence[Crops]) -> Tensor:
        """(2 + L, B, changes.COLUMNS) float32: what to change of the crops of B images."""
        in_colour = torch.tensor([True, crops[0].global_[0].shape[0] == 3])[[0, 1, 1, 0, 1]]
        draws = torch.stack([each.draws for each in crops], dim=1)
        return draw_changes(draws, (self.chances * in_colour)[:, None])
