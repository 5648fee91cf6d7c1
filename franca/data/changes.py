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
PLACES = slice(10, 14)  # the four changes of the jitter happen in the order of these
DRAWS = 14

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
BLUR_SIGMA = (0.1, 2.0)

# Columns of a row. The jitter's four steps hold four each, only one of which is not 0: the share of black, of the
# crop's mean grey, and of each pixel's own grey that is mixed in (negative: the contrary), and the turn of the hue.
STEPS = 4
BLACK, MEAN, GREY, TURN = range(4)
FLIP, GREYSCALE, SIGMA, SOLARIZE = range(4 * STEPS, 4 * STEPS + 4)
COLUMNS = 4 * STEPS + 4


def draw_changes(draws: Tensor, chances: Tensor) -> Tensor:
    """Rows (..., COLUMNS) float32 for ``draws`` (..., DRAWS), numbers uniform in [0, 1).

    chances: (..., 5), probability of each of CHANCES; it broadcasts. Jitter, as torchvision's and DINOv2's: brightness,
    contrast, saturation and hue in random order, strengths uniform around no change.
    """
    flip, jitter, grey, blur, solarize = (draws[..., CHANCES] < chances).unbind(-1)
    strengths = 2 * draws[..., [*range(8)[STRENGTHS], HUE_DRAW]] - 1
    # A factor f mixes 1 - f of the other image in.
    amounts = strengths * torch.tensor([-BRIGHTNESS, -CONTRAST, -SATURATION, HUE], dtype=draws.dtype)
    order = draws[..., PLACES].argsort(-1)
    steps = torch.zeros(*draws.shape[:-1], STEPS, 4, dtype=draws.dtype)
    steps.scatter_(-1, order[..., None], amounts.gather(-1, order)[..., None])
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draws[..., SIGMA_DRAW]
    others = torch.stack([flip, grey, sigma * blur, solarize], dim=-1)
    return torch.cat([(steps * jitter[..., None, None]).flatten(-2), others], dim=-1).float()
