"""Class scores of whole images of any size: overlapping windows, several scales, mirrored images.

Legend: H, W size of an image, S side of a window, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.protocols.linear_segmentation_crops import padded, resize_image
from franca.eval.protocols.linear_segmentation_head import enlarge

# uint8 windows (B, 3, S, S) -> by slice, (B, C, h, w) fp32
Scorer = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class WindowSettings:
    """How a test image is looked at.

    size: side of a window in pixels. stride: from one window to the next. scales: the shorter side is resized to each
    of these times size. flip: each scale mirrored as well. fill: colour where an image ends before a window does.
    """

    size: int
    stride: int
    scales: tuple[float, ...]
    flip: bool
    fill: tuple[int, ...]


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along a side: every ``stride`` pixels, the last one moved back to end with the side."""
    count = max(0, length - size + stride - 1) // stride + 1
    return [min(number * stride, max(0, length - size)) for number in range(count)]


def predict(
    image: Tensor, shape: tuple[int, int], score: Scorer, settings: WindowSettings, batch: int
) -> dict[str, Tensor]:
    """The class of every pixel by slice, uint8 (3, H, W) -> (*shape) int64.

    Probabilities are averaged over scales and mirror images, each brought to ``shape`` as scores.
    """
    total: dict[str, Tensor] = {}
    for scale in settings.scales:
        resized = resize_image(image, settings.size, scale)
        for mirrored in (False, True) if settings.flip else (False,):
            seen = resized.flip(-1) if mirrored else resized
            for name, scores in slide(seen, score, settings, batch).items():
                scores = scores.flip(-1) if mirrored else scores
                probabilities = enlarge(scores[None], *shape)[0].softmax(dim=0)
                total[name] = total[name] + probabilities if name in total else probabilities
    return {name: probabilities.argmax(dim=0).cpu() for name, probabilities in total.items()}


def slide(image: Tensor, score: Scorer, settings: WindowSettings, batch: int) -> dict[str, Tensor]:
    """Scores of every pixel by slice, (3, H, W) -> (C, H, W): the mean over the windows that hold it."""
    size = settings.size
    height, width = image.shape[-2:]
    canvas = padded(image, size, settings.fill)
    corners = [
        (top, left)
        for top in starts(canvas.shape[-2], size, settings.stride)
        for left in starts(canvas.shape[-1], size, settings.stride)
    ]
    total: dict[str, Tensor] = {}
    seen = torch.zeros(canvas.shape[-2:])
    for start in range(0, len(corners), batch):
        some = corners[start : start + batch]
        windows = torch.stack([canvas[:, top : top + size, left : left + size] for top, left in some])
        for top, left in some:
            seen[top : top + size, left : left + size] += 1
        for name, scores in score(windows).items():
            if name not in total:
                total[name] = scores.new_zeros(scores.shape[1], *canvas.shape[-2:])
            for (top, left), window in zip(some, scores.split(1), strict=True):
                total[name][:, top : top + size, left : left + size] += enlarge(window, size, size)[0]
    return {name: (scores / seen.to(scores.device))[:, :height, :width] for name, scores in total.items()}
