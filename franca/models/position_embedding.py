"""Learned positions, stored for a square grid and resampled for any other."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(stored: Tensor, grid: tuple[int, int], offset: float, antialias: bool) -> Tensor:
    """Positions of a class token and an M x M grid, (1, 1 + M*M, D), for `grid` = (h, w): (1, 1 + h*w, D).

    The class token's stays; the others are resampled bicubically. As published, an `offset` other than 0 sets the scale
    to (h + offset) / M, and that scale, not the ratio of the sizes, maps target to source coordinates:
    source = (target + 0.5) / scale - 0.5. Offset 0 uses the sizes.
    """
    height, width = grid
    side = round((stored.shape[1] - 1) ** 0.5)
    if height == width == side:
        return stored
    class_token, patches = stored[:, :1], stored[:, 1:]
    image = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset:
        scale = ((height + offset) / side, (width + offset) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=(height, width), mode="bicubic", antialias=antialias)
    return torch.cat([class_token, image.flatten(2).transpose(1, 2).to(stored.dtype)], dim=1)
