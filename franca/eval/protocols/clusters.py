"""k-means of feature rows (Lloyd, 1982; started by k-means++, Arthur and Vassilvitskii, 2007), exact, on any device.

faiss finds partitions of the same inertia in about the same time on a CPU, and starts elsewhere: it is not used.

Legend: R rows of D features, k clusters. Rows may be fp16 and memory-mapped: they are read in blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize as unit_length

BLOCK = 8192  # rows compared at once
START_ROWS = 64  # rows per cluster among which the start is drawn
MOST_START_ROWS = 1 << 17  # for 65,000 clusters the start would else take longer than all that follows


@dataclass(frozen=True)
class Clusters:
    """A partition of rows; tensors lie where the rows do."""

    centres: Tensor  # (k, D) fp32, among the rows as they were compared: of length 1 if these were made so
    assignment: Tensor  # (R,) int64: cluster of each row, the one with the nearest centre
    inertia: float  # sum over rows of the squared distance to the own centre


@torch.no_grad()
def kmeans(
    rows: Tensor,
    k: int,
    iterations: int = 50,
    seed: int = 0,
    normalize: bool = True,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> Clusters:
    """Clusters of rows (R, D) by Euclidean distance.

    Rows get length 1 first, so that direction alone decides, as in k-NN: a few patches of very large norm, which many
    ViTs have, would otherwise take clusters for themselves. An empty cluster moves to a row far from its centre; with
    fewer than k distinct rows some stay empty.

    Args:
        iterations: at most; it stops earlier when no row changes its cluster.
        seed: of the start, and of where empty clusters move.
        normalize: give rows length 1; False takes them as they are.
        block: rows compared at once, for block * (k + D) numbers of memory; changes no result beyond rounding.
        device: where to compute; None: where the rows lie.

    Raises:
        ValueError: k outside 1..R, rows that are no matrix, or NaN (the number of the row is named).
    """
    if rows.ndim != 2 or not 1 <= k <= len(rows):
        raise ValueError(f"k={k} clusters of rows with shape {tuple(rows.shape)}: expected (R, D) and k from 1 to R")
    prepared = _Rows(rows, normalize, block, torch.device(device or rows.device))
    generator = Generator().manual_seed(seed)
    centres = _start(prepared, k, generator)
    found = _assign(prepared, centres)
    for _ in range(iterations):
        centres = _move(prepared, centres, found, generator)
        earlier, found = found, _assign(prepared, centres)
        if torch.equal(earlier.assignment, found.assignment):
            break
    inertia = _distances(prepared, centres, found.assignment).sum(dtype=torch.float64).item()
    return Clusters((centres + prepared.mean).to(rows.device), found.assignment.to(rows.device), inertia)


@torch.no_grad()
def assign(
    rows: Tensor,
    centres: Tensor,
    normalize: bool = True,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> Tensor:
    """Number of the nearest centre of every row, (R, D) and (k, D) -> (R,) int64.

    For centres that `kmeans` found among other rows, or among some of these; options as there.
    """
    prepared = _Rows(rows, normalize, block, torch.device(device or rows.device))
    return _assign(prepared, centres.to(prepared.mean) - prepared.mean).assignment.to(rows.device)


class _Rows:
    """Rows as they are compared: fp32, of length 1 when asked, their mean taken out so that it costs no digits."""

    def __init__(self, rows: Tensor, normalize: bool, block: int, device: torch.device) -> None:
        self.rows, self.normalize, self.block, self.device = rows, normalize, block, device
        self.mean = torch.zeros(rows.shape[1], device=device)
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=device)
        for start, part in self:
            if not part.isfinite().all():
                row = start + int(part.isfinite().all(dim=1).int().argmin())
                raise ValueError(f"row {row} is NaN or infinite: leave it out, or look at what computed it")
            total += part.sum(dim=0, dtype=torch.float64)
        self.mean = (total / len(rows)).float()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Number of the first row of each block, and the block (b, D)."""
        for start in range(0, len(self.rows), self.block):
            yield start, self._compared(self.rows[start : start + self.block])

    def __getitem__(self, numbers: Tensor) -> Tensor:
        return self._compared(self.rows[numbers.to(self.rows.device)])

    def _compared(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device, torch.float32)
        return (unit_length(rows, dim=1) if self.normalize else rows) - self.mean


@dataclass(frozen=True)
class _Assignment:
    assignment: Tensor  # (R,) int64
    sums: Tensor  # (k, D) float64, of the rows of each cluster
    sizes: Tensor  # (k,) int64


def _assign(rows: _Rows, centres: Tensor) -> _Assignment:
    """Every row to its nearest centre."""
    assignment = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    sums = torch.zeros_like(centres, dtype=torch.float64)
    sizes = torch.zeros(len(centres), dtype=torch.int64, device=rows.device)
    for start, part in rows:
        # |x - c|^2 less |x|^2, which is the same for all centres
        nearest = torch.addmm(centres.square().sum(dim=1), part, centres.T, alpha=-2).argmin(dim=1)
        counts = nearest.bincount(minlength=len(centres))
        assignment[start : start + len(part)] = nearest
        # rows in order of their cluster: the sum has one order on every device, unlike index_add_
        grouped = part[nearest.argsort(stable=True)].double()
        sums += torch.segment_reduce(grouped, "sum", lengths=counts)
        sizes += counts
    return _Assignment(assignment, sums, sizes)


def _distances(rows: _Rows, centres: Tensor, assignment: Tensor) -> Tensor:
    """Squared distance of every row to its centre, (R,): from the differences, exact also where it is small."""
    parts = [(part - centres[assignment[start : start + len(part)]]).square().sum(dim=1) for start, part in rows]
    return torch.cat(parts)


def _move(rows: _Rows, centres: Tensor, found: _Assignment, generator: Generator) -> Tensor:
    """Every centre to the mean of its rows, that of an empty cluster to a row that fits badly."""
    moved = (found.sums / found.sizes.clamp_min(1)[:, None]).float()
    empty = (found.sizes == 0).nonzero().flatten()
    if len(empty):
        moved[empty] = rows[_draw(_distances(rows, centres, found.assignment), len(empty), generator)]
    return moved


def _start(rows: _Rows, k: int, generator: Generator) -> Tensor:
    """k-means++ among some rows: the next centre is a row drawn by its distance from those there are."""
    drawn = max(k, min(START_ROWS * k, MOST_START_ROWS))
    sample = rows[torch.randperm(len(rows), generator=generator)[:drawn].sort().values]
    lengths = sample.square().sum(dim=1)
    chosen = torch.randint(len(sample), (1,), generator=generator)
    distances = torch.full_like(lengths, torch.inf)
    for _ in range(k - 1):
        newest = chosen[-1]
        to_newest = torch.addmv(lengths + lengths[newest], sample, sample[newest], alpha=-2).clamp_min(0)
        distances = torch.minimum(distances, to_newest)
        chosen = torch.cat([chosen, _draw(distances, 1, generator)])
    return sample[chosen]


def _draw(distances: Tensor, count: int, generator: Generator) -> Tensor:
    """Numbers of rows, with chances in proportion to their squared distances; one may be drawn twice."""
    cumulative = distances.double().cpu().cumsum(dim=0)  # on the CPU: one order of summation
    thresholds = torch.rand(count, dtype=torch.float64, generator=generator) * cumulative[-1]
    return torch.searchsorted(cumulative, thresholds, right=True).clamp_max(len(distances) - 1)
