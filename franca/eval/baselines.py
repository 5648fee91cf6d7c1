"""Features without a network: what a protocol's score is worth is seen beside pixels and colours.

Legend: B images of C channels and H x W pixels, h x w patches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD

THUMBNAIL_SIDE = 8  # pixels
PATCH = 14  # pixels, of Franca's networks


class Baseline(nn.Module):
    """Normalised images -> features in the words of `forward_features`. Nothing in it was learned.

    Pixels are normalised as for networks: their cosines then compare colours, where raw ones mostly compare brightness
    (k-NN of thumbnails is four points better so on Imagenette).
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    patch_size = PATCH

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> `x_norm_clstoken` (B, …) and `x_norm_patchtokens` (B, h * w, …)."""
        height, width = images.shape[-2:]
        fitting = [max(1, side // PATCH) * PATCH for side in (height, width)]
        if fitting != [height, width]:
            raise ValueError(
                f"patches of {PATCH} pixels don't divide them; {fitting[0]} x {fitting[1]} pixels would do"
            )
        patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # (B, h * w, C * 14 * 14)
        return {"x_norm_clstoken": self.of_image(images), "x_norm_patchtokens": self.of_patches(patches)}

    def of_image(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        raise NotImplementedError

    def of_patches(self, patches: Tensor) -> Tensor:
        """(B, N, C * 14 * 14) -> (B, N, D)."""
        raise NotImplementedError


class Pixels(Baseline):
    """The image as a thumbnail of 8 x 8 pixels (C * 64 values), each patch as its pixels (C * 196 values)."""

    def of_image(self, images: Tensor) -> Tensor:
        return thumbnail(images)

    def of_patches(self, patches: Tensor) -> Tensor:
        return patches


class Colour(Baseline):
    """The mean colour of the image and of each patch (C values)."""

    def of_image(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def of_patches(self, patches: Tensor) -> Tensor:
        return patches.unflatten(2, (-1, PATCH * PATCH)).mean(dim=3)


BASELINES: dict[str, type[Baseline]] = {"pixels": Pixels, "colour": Colour}


def thumbnail(images: Tensor, side: int = THUMBNAIL_SIDE) -> Tensor:
    """(B, C, H, W) -> (B, C * side * side) fp32: mean values of the cells of a grid over the image."""
    return F.adaptive_avg_pool2d(images.to(torch.float32), side).flatten(1)
