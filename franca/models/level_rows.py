"""What the prototypes of every Matryoshka level see: each level's slice through its linear map and its MLP.

Legend: N rows, d features, J levels; level j has a square map P_j, p_j of its first m_j features, then an MLP whose
layers W, b have the same shapes on every level, but for the first one's width m_j. Two forms give the same numbers but
for rounding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rows_by_level(features: Tensor, maps: nn.ModuleList, mlps: nn.ModuleList) -> list[Tensor]:
    """(N, d) -> J x (N, out), one level after the other."""
    return [
        mlp(project(features[..., : project.in_features])) for project, mlp in zip(_linears(maps), mlps, strict=True)
    ]


def rows_at_once(features: Tensor, maps: nn.ModuleList, mlps: nn.ModuleList) -> Tensor:
    """(N, d) -> (J, N, out): one product for all maps and first layers, one batched product per layer behind them.

    Nothing but a linear map stands between P_j x + p_j and the first W_j (.) + b_j: together they are W_j P_j x +
    (W_j p_j + b_j), and of all levels one matrix (J * hidden, d) that is 0 beyond m_j.
    """
    first, *others = zip(*(_linears(mlp) for mlp in mlps), strict=True)
    rows = F.linear(features, *_folded(_linears(maps), first, features.shape[-1]))
    rows = rows.unflatten(-1, (len(maps), -1)).transpose(0, 1)  # (J, N, hidden)
    for layers in others:
        bias = torch.stack([layer.bias for layer in layers])[:, None]
        weight = torch.stack([layer.weight for layer in layers])
        rows = torch.baddbmm(bias, F.gelu(rows), weight.mT)
    ends_in_gelu = isinstance(list(mlps[0].modules())[-1], nn.GELU)
    return F.gelu(rows) if ends_in_gelu else rows


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _folded(maps: Sequence[nn.Linear], first: Sequence[nn.Linear], width: int) -> tuple[Tensor, Tensor]:
    """Weight (J * hidden, width) and bias (J * hidden,)."""
    weights, biases = [], []
    for project, layer in zip(maps, first, strict=True):
        nothing = layer.weight.new_zeros(layer.out_features, width - project.in_features)
        product = layer.weight @ project.weight
        weights.append(torch.cat([product, nothing.to(product.dtype)], dim=1))
        biases.append(F.linear(project.bias, layer.weight, layer.bias))
    return torch.cat(weights), torch.cat(biases)
