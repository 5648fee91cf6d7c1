"""What is changed about each crop beside its cut: drawn on the host, from numbers that depend on the sample alone.

A crop's changes are one row of numbers, so that those of a batch travel to the device together and each crop there
gets its own strengths. 0 means no change in every column. N crops.
"""

import torch
from torch import Tensor

# Numbers uniform in [0, 1) that a crop needs; always as many, so that no draw depends on another's outcome.
CHANCES = slice(0, 5)  # flip, colour jitter, greyscale, blur, solarise: happens when below its probability
STRENGTHS = slice(5, 8)  # brightness, contrast, saturation
HUE_DRAW, SIGMA_DRAW = 8, 9
PLACES = slice(10, 14)  # the four changes of the jitter, hue last, happen in the order of these
DRAWS = 14

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
BLUR_SIGMA = (0.1, 2.0)

# Columns of a row. The jitter mixes other images in (black, the crop's mean grey, each pixel's own grey), in three of
# six slots (a negative share: the contrary), and turns the hue between slots 2 and 3: so any order has its place, and
# the hue, which costs most, is turned once.
SLOTS = 6
BLACK, MEAN, GREY = range(3)  # of a slot's three shares
TURN, FLIP, GREYSCALE, SIGMA, SOLARIZE = range(3 * SLOTS, 3 * SLOTS + 5)
JITTER = slice(0, TURN + 1)
COLUMNS = 3 * SLOTS + 5


def draw_changes(draws: Tensor, chances: Tensor) -> Tensor:
    """Rows (..., COLUMNS) float32 for ``draws`` (..., DRAWS), numbers uniform in [0, 1).

    chances: (..., 5), probability of each of CHANCES; it broadcasts. Jitter, as torchvision's and DINOv2's: brightness,
    contrast, saturation and hue in random order, strengths uniform around no change.
    """
    flip, jitter, grey, blur, solarize = (draws[..., CHANCES] < chances).unbind(-1)
    # A factor f mixes 1 - f of the other image in.
    shares = (1 - 2 * draws[..., STRENGTHS]) * torch.tensor([BRIGHTNESS, CONTRAST, SATURATION], dtype=draws.dtype)
    turn = (2 * draws[..., HUE_DRAW] - 1) * HUE
    ranks = draws[..., PLACES].argsort(-1).argsort(-1)
    slots = ranks[..., :3] + 2 * (ranks[..., :3] > ranks[..., 3:])
    mixed = torch.zeros(*draws.shape[:-1], 3, SLOTS, dtype=draws.dtype)
    mixed.scatter_(-1, slots[..., None], shares[..., None])
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draws[..., SIGMA_DRAW]
    others = torch.stack([turn * jitter, flip, grey, sigma * blur, solarize], dim=-1)
    return torch.cat([(mixed.mT * jitter[..., None, None]).flatten(-2), others], dim=-1).float()
