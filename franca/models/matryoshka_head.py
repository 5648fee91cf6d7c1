"""The Matryoshka head: one projector and one set of prototypes per nested slice of the feature.

Legend: N rows, d = in_dim, level j with m_j features and K_j prototypes, narrowest level first.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from franca.models.level_rows import rows_at_once, rows_by_level


class Factors(NamedTuple):
    """The scores of one level before they are multiplied out: rows @ prototypes.T."""

    rows: Tensor  # (N, bottleneck_dim)
    prototypes: Tensor  # (K_j, bottleneck_dim)


class Prototypes(nn.Module):
    """() -> (count, width): directions of unit length, times a gain each (weight norm)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(count, 1))
        self.weight_v = nn.Parameter(torch.empty(count, width))

    def reset_parameters(self) -> None:
        bound = self.weight_v.shape[1] ** -0.5
        nn.init.ones_(self.weight_g)
        nn.init.uniform_(self.weight_v, -bound, bound)

    def forward(self) -> Tensor:
        """In fp32 at least, also where the parameters travel in 16 bits."""
        directions = self.weight_v.to(torch.promote_types(self.weight_v.dtype, torch.float32))
        length = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        return directions * (self.weight_g / length)


class MatryoshkaHead(nn.Module):
    """Scores of every level, (N, d) -> [(N, K_1), ..., (N, K_J)], narrowest level first.

    Level j reads x[..., :m_j] (paper section 3.1) through a square linear map, an MLP down to `bottleneck_dim`, and its
    own prototypes. With one level, nesting=(1,), it is a DINO head behind one linear map.

    Args:
        in_dim: width d of the feature.
        prototypes: the widest level's count, scaled by the levels' widths and rounded down, as the released heads do;
            or a list with one count per level.
        nesting: widths of the levels as fractions of d, growing; each must give a whole number of features.
        hidden_dim: hidden width of the MLPs.
        bottleneck_dim: width that the prototypes see.
        layers: linear layers of each MLP; 1 is a single linear map.
        normalize_bottleneck: True, as DINOv2: the last linear's output, L2-normalised, meets the prototypes. False, as
            the released Franca weights: a GELU after the last linear (if layers > 1), no normalisation.

    Raises:
        ValueError: for an argument outside the ranges above, or features of another width than `in_dim`.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int | Sequence[int],
        nesting: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1),
        hidden_dim: int = 2048,
        bottleneck_dim: int = 384,
        layers: int = 3,
        normalize_bottleneck: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("hidden_dim", hidden_dim), ("bottleneck_dim", bottleneck_dim), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name}={value} must be a whole number above 0")
        self.in_dim = in_dim
        self.widths = level_widths(in_dim, nesting)
        self.prototypes = level_prototypes(prototypes, self.widths)
        self.normalize_bottleneck = normalize_bottleneck
        self.config: dict[str, Any] = {
            "in_dim": in_dim,
            "prototypes": self.prototypes,
            "nesting": [float(fraction) for fraction in nesting],
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "layers": layers,
            "normalize_bottleneck": normalize_bottleneck,
        }
        self.matryoshka_projections = nn.ModuleList(nn.Linear(width, width) for width in self.widths)
        self.mlps = nn.ModuleList(
            _mlp(width, hidden_dim, bottleneck_dim, layers, last_gelu=not normalize_bottleneck) for width in self.widths
        )
        self.last_layers = nn.ModuleList(Prototypes(bottleneck_dim, count) for count in self.prototypes)
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter to its start value, whatever was allocated (DINOv2's conventions)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Prototypes):
                module.reset_parameters()

    def forward(self, features: Tensor) -> list[Tensor]:
        kind = features.dtype
        return [F.linear(rows.to(kind), prototypes.to(kind)) for rows, prototypes in self.factors(features)]

    def factors(self, features: Tensor) -> list[Factors]:
        """What the scores are products of, per level, for those who multiply them out part by part: (N, d) -> J."""
        if features.shape[-1] != self.in_dim:  # slices of a wider feature would fit without a word
            raise ValueError(f"features of shape {tuple(features.shape)}; this head reads (N, in_dim={self.in_dim})")
        prototypes = [last() for last in self.last_layers]
        return [Factors(*level) for level in zip(self._rows(features), prototypes, strict=True)]

    def _rows(self, features: Tensor) -> Sequence[Tensor]:
        """J x (N, bottleneck_dim). At once where starting an operation costs more than the products with zeros."""
        if features.device.type in ("cpu", "meta"):  # meta: where the products that are needed are counted
            return [self._bottleneck(rows) for rows in rows_by_level(features, self.matryoshka_projections, self.mlps)]
        return self._bottleneck(rows_at_once(features, self.matryoshka_projections, self.mlps)).unbind()

    def _bottleneck(self, rows: Tensor) -> Tensor:
        """(..., bottleneck_dim), normalised if asked for, and then in fp32 at least."""
        if not self.normalize_bottleneck:
            return rows
        return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1, eps=1e-6)


def level_widths(in_dim: int, nesting: Sequence[float]) -> list[int]:
    """Features of each level, e.g. 768 and (1/4, 1/2, 1) -> [192, 384, 768]; ValueError if that makes no levels."""
    widths = [round(in_dim * fraction) for fraction in nesting]
    if not widths:
        raise ValueError("nesting is empty; give at least one level, e.g. (1,)")
    for fraction, width in zip(nesting, widths, strict=True):
        if not 0 < fraction <= 1 or width < 1 or abs(width - in_dim * fraction) > 1e-3:
            raise ValueError(
                f"nesting holds {fraction:g}, which of in_dim={in_dim} features makes {in_dim * fraction:g}; "
                "each level needs a whole number of features from 1 to in_dim"
            )
    if any(narrow >= wide for narrow, wide in pairwise(widths)):
        raise ValueError(f"nesting={list(nesting)} makes widths {widths}; they must grow, without duplicates")
    return widths


def level_prototypes(prototypes: int | Sequence[int], widths: Sequence[int]) -> list[int]:
    """Prototypes of each level: a list as given, or the widest level's count scaled by the widths, rounded down."""
    if isinstance(prototypes, int):
        counts = [prototypes * width // widths[-1] for width in widths]
    else:
        counts = [int(count) for count in prototypes]
        if len(counts) != len(widths):
            raise ValueError(f"prototypes={counts} holds {len(counts)} counts for {len(widths)} levels of nesting")
    if min(counts) < 1:
        raise ValueError(f"prototypes per level {counts}: every level needs at least one")
    return counts


def _mlp(in_dim: int, hidden: int, out_dim: int, layers: int, last_gelu: bool) -> nn.Module:
    """`layers` linear maps with a GELU between them, and one after the last if asked for; a single map has none."""
    if layers == 1:
        return nn.Linear(in_dim, out_dim)
    dims = [in_dim, *[hidden] * (layers - 1), out_dim]
    steps: list[nn.Module] = []
    for narrow, wide in pairwise(dims):
        steps += [nn.Linear(narrow, wide), nn.GELU()]
    return nn.Sequential(*(steps if last_gelu else steps[:-1]))
