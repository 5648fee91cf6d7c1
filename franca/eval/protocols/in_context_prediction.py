"""In-context segmentation: a patch takes the classes of the training patches that it resembles, pixel by pixel.

Legend: B images, h x w patches each, D features, k neighbours, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from franca.eval.neighbours import nearest
from franca.eval.protocols.in_context_memory import Memory

WEIGHED_AT_ONCE = 4096  # queries


@torch.no_grad()
def predict_patches(
    queries: Tensor, memory: Memory, neighbours: int, temperature: float, device: torch.device | None = None
) -> Tensor:
    """Classes of patches, (Q, D) -> (Q, C) fp32: votes of the neighbours, weighted by softmax(cosine / temperature).

    Neighbours are the memory's rows with the largest cosine; queries of another length find the same ones. The result
    lies on ``device``, or where the queries do.
    """
    device = device or queries.device
    cosine, rows = nearest(queries, memory.features, neighbours, device, cosine=True)
    weights = (cosine.to(device) / temperature).softmax(dim=1)
    parts = zip(weights.split(WEIGHED_AT_ONCE), rows.split(WEIGHED_AT_ONCE), strict=True)
    return torch.cat([torch.einsum("qk,qkc->qc", weight, memory.votes(row).to(device)) for weight, row in parts])


def predict_pixels(patches: Tensor, height: int, width: int) -> Tensor:
    """The class of every pixel of one image, (h, w, C) -> (height, width) int64, resized bilinearly."""
    grid = patches.permute(2, 0, 1)[None]
    return interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(dim=0)
