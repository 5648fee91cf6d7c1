"""KoLeo, in fp32 (fp64 for fp64 inputs) with autocast off."""

import torch
import torch.nn.functional as F
from torch import Tensor

from franca.objective.precision import full_precision, precise


def koleo_loss(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko regulariser: (B, D) -> scalar, low when features spread over the sphere.

    -mean log of the distance from each L2-normalised row to its nearest other row (Sablayrolles et al. 2019, eq. 5).
    A single row has no other: 0.
    """
    if len(features) < 2:
        return precise(features.new_zeros(()))
    with full_precision(features.device):
        rows = F.normalize(precise(features), dim=-1, eps=eps)
        with torch.no_grad():
            nearest = (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        distance = F.pairwise_distance(rows, rows[nearest], eps=eps)
        return -(distance + eps).log().mean()
