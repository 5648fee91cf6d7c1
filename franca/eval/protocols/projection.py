"""Principal components of feature rows, in two passes over rows that may be fp16 and memory-mapped.

Legend: R rows of D features, P components.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 8192  # rows read at once
FLOOR = 1e-10  # of the total variance: a direction that varies less is rounding


@dataclass(frozen=True)
class Projection:
    """Rows -> their components, strongest first; float64 on the CPU."""

    mean: Tensor  # (D,)
    directions: Tensor  # (D, P), orthonormal unless features were standardised
    variances: Tensor  # (P,) of the rows' components

    def __call__(self, rows: Tensor) -> Tensor:
        """(…, D) -> (…, P), in the type of the rows (fp32 at least) and on their device."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        centred = rows.to(dtype) - self.mean.to(rows.device, dtype)
        return centred @ self.directions.to(rows.device, dtype)

    @property
    def varies(self) -> Tensor:
        """Which components are more than rounding, (P,) bool."""
        return self.variances > FLOOR * self.variances.sum().clamp_min(1e-30)


@torch.no_grad()
def principal_components(
    rows: Tensor,
    count: int,
    standardize: bool = False,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> Projection:
    """The ``count`` directions of greatest variance of rows (R, D), or all D if there are no more.

    Args:
        standardize: give every feature variance 1 first; those that don't vary stay as they are.
        block: rows read at once; changes no result beyond rounding.
        device: where products are computed; None: where the rows lie.
    """
    device = device or rows.device
    width = rows.shape[1]
    total, moment = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for part in _blocks(rows, block, device):
        total += part.sum(dim=0).cpu()
    mean = total / len(rows)
    shift = mean.to(device, torch.promote_types(rows.dtype, torch.float32))
    for part in _blocks(rows, block, device):
        centred = part - shift
        moment += (centred.T @ centred).cpu()
    covariance = moment / len(rows)
    scale = torch.ones_like(mean)
    if standardize:
        variance = covariance.diagonal()
        scale = torch.where(variance > FLOOR * variance.mean(), variance, 1.0).rsqrt()
    variances, directions = torch.linalg.eigh(scale[:, None] * covariance * scale)
    kept = min(count, len(mean))
    directions = directions.flip(1)[:, :kept]
    return Projection(mean, scale[:, None] * directions, variances.flip(0)[:kept].clamp_min(0))


def _blocks(rows: Tensor, block: int, device: torch.device | str) -> Iterator[Tensor]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    for start in range(0, len(rows), block):
        yield rows[start : start + block].to(device, dtype)
