"""RASA: removes from patch features the directions that predict where a patch lies (paper Sec. 2.3).

Legend: N patches, D width. A plane is spanned by the two rows of a position predictor's weight (2, D), row first.
"""

from itertools import chain
from typing import Literal, overload

import torch
from torch import Tensor, nn


def plane_basis(weight: Tensor) -> Tensor:
    """Orthonormal basis of the rows of a predictor's weight, (k, D) -> (k, D), by Gram-Schmidt in their order.

    A row that is zero, or depends on the rows before it, spans nothing and becomes zeros: nothing is removed for it.
    """
    basis: list[Tensor] = []
    for row in weight:
        length = torch.linalg.vector_norm(row)
        rest = row
        for direction in basis:
            rest = rest - (rest @ direction) * direction
        remaining = torch.linalg.vector_norm(rest)
        depends = remaining <= 1e-6 * length
        basis.append(torch.where(depends, 0.0, rest / torch.where(depends, 1.0, remaining)))
    return torch.stack(basis)


def decompose(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Features (…, D) -> their part within the plane of `weight` (k, D) and the remainder (paper Eqs. 1 and 2)."""
    basis = plane_basis(weight)
    positional = (features @ basis.T) @ basis
    return positional, features - positional


class RASAHead(nn.Module):
    """(…, N, D) -> (…, N, D): patch features without the planes of all its position predictors.

    The planes are removed one after the other: `pre_pos_layers` in their order, then `pos_pred`, the predictor trained
    last. The published heads hold eight or nine earlier layers, whose planes are not orthogonal to one another.

    Args:
        input_dim: width D of the features.
        n_pos_layers: number of `pre_pos_layers`, without `pos_pred`; 0 or more.

    Raises:
        ValueError: for an argument outside these ranges, or features of another width.
    """

    def __init__(self, input_dim: int, n_pos_layers: int) -> None:
        super().__init__()
        if input_dim < 1 or n_pos_layers < 0:
            raise ValueError(f"input_dim={input_dim} must be above 0 and n_pos_layers={n_pos_layers} not below")
        self.input_dim = input_dim
        self.pos_pred = nn.Linear(input_dim, 2, bias=False)
        self.pre_pos_layers = nn.ModuleList(nn.Linear(input_dim, 2, bias=False) for _ in range(n_pos_layers))

    @property
    def n_pos_layers(self) -> int:
        """Number of `pre_pos_layers`."""
        return len(self.pre_pos_layers)

    def weights(self, use_pos_pred: bool = True) -> list[Tensor]:
        """The predictors' weights (2, D) in the order in which their planes are removed."""
        layers = chain(self.pre_pos_layers, [self.pos_pred] if use_pos_pred else [])
        return [layer.weight for layer in layers]  # type: ignore[misc]

    @overload
    def forward(self, x: Tensor, use_pos_pred: bool = True, return_pos_info: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, use_pos_pred: bool = True, *, return_pos_info: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Tensor, use_pos_pred: bool = True, return_pos_info: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Features without position.

        Args:
            x: patch features after the backbone's last norm, (…, N, D).
            use_pos_pred: remove the plane of `pos_pred` too; without it, `pre_pos_layers` alone.
            return_pos_info: a pair (what the last plane held, (…, N, D); the features).
        """
        if x.shape[-1] != self.input_dim:
            raise ValueError(f"features of shape {tuple(x.shape)}; this head reads (…, input_dim={self.input_dim})")
        positional = torch.zeros_like(x)
        for weight in self.weights(use_pos_pred):
            positional, x = decompose(x, weight)
        return (positional, x) if return_pos_info else x

    def predict_positions(self, x: Tensor) -> Tensor:
        """Where `pos_pred` finds each patch, (…, N, D) -> (…, N, 2): row and column in [0, 1].

        It reads the features that the earlier layers leave: `x` is what `forward(x, use_pos_pred=False)` returned. A
        prediction only of heads that were trained by gradient, as the published ones: the closed-form solver has an
        intercept, for which a head has no place, and only its planes mean something.
        """
        return torch.sigmoid(self.pos_pred(x))
