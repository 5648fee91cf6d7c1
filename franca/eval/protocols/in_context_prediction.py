"""In-context segmentation: a patch takes the classes of the training patches that it resembles, pixel by pixel.

Legend: B images, h x w patches each, D features, k neighbours, C classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from franca.eval.neighbours import nearest
from franca.eval.protocols.in_context_memory import Memory

WEIGHED_AT_ONCE = 4096  # queries

# queries (Q, D) -> cosines (Q, k), falling, and numbers of the memory's rows (Q, k)
Search = Callable[[Tensor], tuple[Tensor, Tensor]]


def exact_search(memory: Memory, neighbours: int, device: torch.device | None = None) -> Search:
    """Every row of the memory is compared; rows and queries of another length find the same ones."""
    return lambda queries: nearest(queries, memory.features, neighbours, device, cosine=True)


@torch.no_grad()
def predict_patches(
    queries: Tensor, memory: Memory, search: Search, temperature: float, device: torch.device | None = None
) -> Tensor:
    """Classes of patches, (Q, D) -> (Q, C) fp32: votes of the neighbours, weighted by softmax(cosine / temperature).

    The result lies on ``device``, or where the queries do.
    """
    device = device or queries.device
    cosine, rows = search(queries)
    weights = (cosine.to(device) / temperature).softmax(dim=1)
    parts = zip(weights.split(WEIGHED_AT_ONCE), rows.split(WEIGHED_AT_ONCE), strict=True)
    return torch.cat([torch.einsum("qk,qkc->qc", weight, memory.votes(row).to(device)) for weight, row in parts])


def predict_pixels(patches: Tensor, height: int, width: int) -> Tensor:
    """The class of every pixel of one image, (h, w, C) -> (height, width) int64, resized bilinearly."""
    grid = patches.permute(2, 0, 1)[None]
    return interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(dim=0)
