"""Crop loss, patch loss and KoLeo, all in fp32 (fp64 for fp64 inputs) with autocast off.

B images, N rows, K_j prototypes of level j, J levels, D feature width. Levels are lists, narrowest first, of equal
weight (paper section 2.1): crop and patch loss return one value per level, (J,), whose sum is the loss.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, on devices that have it."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def precise(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cross_entropy(logits: Tensor, assignments: Tensor, temperature: float) -> Tensor:
    """-sum_k q_nk log softmax_k(logits / temperature): logits (..., N, K), assignments q (N, K) -> (..., N).

    Rows of q may have any mass: 2 for the sum of two assignments, 0 for padding (value and gradient exactly 0).
    Written as q.sum() * logsumexp - q.logits, so that the log-softmax is never stored.
    """
    with _full_precision(logits.device):
        scaled = precise(logits) / temperature
        expected = torch.einsum("...nk,nk->...n", scaled, assignments)
        return assignments.sum(dim=-1) * scaled.logsumexp(dim=-1) - expected


def crop_loss(student: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of class-token predictions, mean over rows of the targets, sum over crops, per level: (J,).

    student: J x (C*N, K_j), C crops stacked crop-major; targets: J x (N, K_j), fp32. It replaces, for every level,
        sum(cross_entropy(crop, target, temperature).mean() for crop in student.chunk(C))
    Cross-entropy is linear in its target, so local crops against both teacher crops take one call with q_a + q_b for
        sum(cross_entropy(crop, q).mean() for crop in local_crops for q in (q_a, q_b))
    """
    per_level = []
    for logits, target in zip(student, targets, strict=True):
        crops = logits.unflatten(0, (-1, len(target)))  # (C, N, K)
        per_level.append(cross_entropy(crops, target, temperature).mean(dim=-1).sum())
    return torch.stack(per_level)


def patch_loss(
    student: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor, n_crops: int, temperature: float
) -> Tensor:
    """Cross-entropy of masked-patch predictions, per level: (J,).

    student, targets: J x (M, K_j); weights: (M,), 1 / masked patches of the row's own crop, 0 for padding, so that a
    crop counts as the mean over its masked patches. n_crops: all global crops of the batch, masked or not.
    """
    per_level = [
        (cross_entropy(logits, target, temperature) * weights).sum()
        for logits, target in zip(student, targets, strict=True)
    ]
    return torch.stack(per_level) / n_crops


def koleo_loss(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko regulariser: (B, D) -> scalar, low when features spread over the sphere.

    -mean log of the distance from each L2-normalised row to its nearest other row (Sablayrolles et al. 2019, eq. 5).
    A single row has no other: 0.
    """
    if len(features) < 2:
        return precise(features.new_zeros(()))
    with _full_precision(features.device):
        rows = F.normalize(precise(features), dim=-1, eps=eps)
        with torch.no_grad():
            nearest = (rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        distance = F.pairwise_distance(rows, rows[nearest], eps=eps)
        return -(distance + eps).log().mean()
