"""What pictures are drawn from: images at their own proportions, patch features and attention of each.

Legend: (H, W) pixels, (h, w) patches, D features.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from franca.data.errors import UnreadableImage
from franca.data.sources import Source
from franca.eval.context import Engine
from franca.eval.views import Squash

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """The whole image at its proportions: both sides whole numbers of patches.

    ``size``: its longer side in pixels, as nearly as patches allow; 0: as it is.
    """

    size: int
    patch: int

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) -> uint8 (C, H', W'), bicubic with antialias."""
        return F.resize(image, self.sides(image), interpolation=InterpolationMode.BICUBIC, antialias=True)

    def mask(self, mask: Tensor) -> Tensor:
        """(H, W) -> (H', W'), nearest pixel."""
        return F.resize(mask[None], self.sides(mask), interpolation=InterpolationMode.NEAREST_EXACT)[0]

    def sides(self, image: Tensor) -> list[int]:
        """H' and W'."""
        height, width = image.shape[-2:]
        scale = self.size / max(height, width) if self.size else 1.0
        return [max(1, round(side * scale / self.patch)) * self.patch for side in (height, width)]


@dataclass(frozen=True)
class Picture:
    """An image as a network sees it."""

    number: int  # in its source
    pixels: Tensor  # (C, H, W) uint8
    mask: Tensor | None  # (H, W) uint8, where the source has masks


def view_for(engine: Engine, size: int) -> Fit | Squash:
    """Own proportions where the patch of the network is known, else a square."""
    patch = engine.backbone.patch_size
    return Squash(size) if patch is None else Fit(size, patch)


def load_pictures(source: Source, numbers: Sequence[int], view: Fit | Squash) -> list[Picture]:
    """The readable images among these numbers; others are named in the log."""
    pictures = []
    for number in numbers:
        try:
            pixels = view(source.load(number))
        except UnreadableImage as error:
            logger.warning("left out: %s", error)
            continue
        mask = view.mask(source.mask(number)) if hasattr(source, "mask") else None
        pictures.append(Picture(number, pixels, mask))
    return pictures


def patch_grids(engine: Engine, pictures: Sequence[Picture], batch_size: int) -> list[Tensor]:
    """Patch features of every picture, (h, w, D) each, fp32 on the CPU."""
    found: dict[int, Tensor] = {}
    for places, pixels in _batches(pictures, batch_size):
        found |= zip(places, engine.tokens(pixels)[-1].patches.float().cpu(), strict=True)
    return [found[place] for place in range(len(pictures))]


@torch.no_grad()
def attention_maps(engine: Engine, pictures: Sequence[Picture], batch_size: int) -> list[Tensor]:
    """Attention of the class token to the patches in the last block, (heads, h, w) each, fp32 on the CPU.

    Raises EvalError for a network that can't tell.
    """
    found: dict[int, Tensor] = {}
    for places, pixels in _batches(pictures, batch_size):
        found |= zip(places, engine.backbone.attention(engine.normalised(pixels)).float().cpu(), strict=True)
    return [found[place] for place in range(len(pictures))]


def _batches(pictures: Sequence[Picture], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures of equal size together: their places in the list, and (B, C, H, W)."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        alike[picture.pixels.shape].append(place)
    for places in alike.values():
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            yield chosen, torch.stack([pictures[place].pixels for place in chosen])
