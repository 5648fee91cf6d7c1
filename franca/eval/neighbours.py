"""Nearest neighbours by inner product: exact, in bounded memory, the same whatever searches and however it is cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from franca.eval.candidates import Search, choose_search
from franca.eval.errors import EvalError

CHUNK = 16_384  # memory rows at once
TILE = 2048  # queries that meet them at once in fp64
HELD = 65_536  # queries for which candidates are kept while the memory passes by
SPARE = 16  # candidates beyond k that every query has, at least
MORE = 128  # further ones at most, for queries that these don't decide
ELEMENTS = 1 << 22  # of the rows that are compared again in fp64 at once; more leave the CPU's caches
SIGMAS = 8  # of rounding errors, see `rounding_of_products`
SHORTEST = 1e-12  # length below which a row counts as zero and stays it


@dataclass(frozen=True)
class Rows:
    """Rows made of parts side by side, (N, D_1), (N, D_2) …, of any type and maybe memory-mapped; read in pieces."""

    parts: tuple[Tensor, ...]
    unit: bool = False  # scaled to length 1 when they are read
    chosen: Tensor | None = None  # numbers (n,) of the rows that count, on the CPU; None: all

    def __post_init__(self) -> None:
        if not self.parts or any(part.ndim != 2 or len(part) != len(self.parts[0]) for part in self.parts):
            raise ValueError(f"parts of shape {[tuple(part.shape) for part in self.parts]}: expected (N, D) of one N")

    def __len__(self) -> int:
        return len(self.parts[0] if self.chosen is None else self.chosen)

    @property
    def width(self) -> int:
        """D: the parts' widths together."""
        return sum(part.shape[1] for part in self.parts)

    def read(self, which: slice | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The chosen rows, (n, D)."""
        which = self.numbers(which)
        parts = [part[which.to(part.device) if isinstance(which, Tensor) else which] for part in self.parts]
        parts = [part.to(device).to(dtype, copy=True, memory_format=torch.contiguous_format) for part in parts]
        rows = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(SHORTEST)) if self.unit else rows

    def numbers(self, which: slice | Tensor) -> slice | Tensor:
        """Where some of the rows that count stand in the parts."""
        if self.chosen is None:
            return which
        return self.chosen[which.cpu() if isinstance(which, Tensor) else which]


@torch.no_grad()
def nearest(
    queries: Tensor | Rows,
    memory: Tensor | Rows,
    k: int,
    device: torch.device | None = None,
    cosine: bool = False,
    chunk: int = CHUNK,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k rows of the memory with the largest inner product, for each query.

    fp32 products name candidates; these are compared again in fp64, rounded to fp32, and among equal ones the lower
    row number comes first. A query whose candidates can't be told from the rest by fp32 gets up to four times as many,
    and if that isn't enough (many equal rows) it is compared with all rows in fp64. So neither engine nor ``chunk``
    changes a result.

    Args:
        queries: (Q, D). memory: (N, D). Any floating type, on any device; memory-mapped rows are read in pieces.
        k: from 1 to N.
        device: where to compute; None: where the queries are. The memory streams there.
        cosine: rows of both are scaled to length 1.
        chunk: memory rows at once.
        engine: faiss, torch, or auto: faiss where it is installed, knows the device and the search is large.

    Returns:
        inner products (Q, k) fp32, falling, and row numbers (Q, k) int64, on the queries' device.

    Raises:
        EvalError: k outside 1..N, widths that differ, features that are not finite, or an engine that isn't there.
    """
    asked, held = (as_rows(side, cosine) for side in (queries, memory))
    if asked.width != held.width or not 1 <= k <= len(held):
        raise EvalError(
            f"{k} neighbours of {len(asked)} rows of width {asked.width} among {len(held)} rows of width {held.width}: "
            f"widths must agree and k lie between 1 and {len(held)}"
        )
    home = asked.parts[0].device
    device = device or home
    search = choose_search(engine, device, len(asked) * len(held))
    values = torch.empty(len(asked), k, device=home)
    index = torch.empty(len(asked), k, dtype=torch.int64, device=home)
    with _plain_products(device):
        for start in range(0, len(asked), HELD):
            part = slice(start, min(start + HELD, len(asked)))
            values[part], index[part] = _search_held(asked, part, held, k, device, search, chunk)
    return values, index


def as_rows(side: Tensor | Rows, cosine: bool) -> Rows:
    """Queries or a memory, of length 1 if asked."""
    return Rows((side,), unit=cosine) if isinstance(side, Tensor) else replace(side, unit=cosine or side.unit)


@contextmanager
def _plain_products(device: torch.device) -> Iterator[None]:
    """Products of fp32 in full precision, whatever surrounds the call."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _search_held(
    asked: Rows, part: slice, held: Rows, k: int, device: torch.device, search: Search, chunk: int
) -> tuple[Tensor, Tensor]:
    """Neighbours of some queries, small enough to keep their candidates."""
    queries = asked.read(part, torch.float32, device)
    few = min(len(held), k + max(SPARE, k // 8))
    many = min(len(held), few + min(3 * few, MORE))
    found, longest = _candidates(queries, held, many, search, chunk)
    lengths = queries.norm(dim=1)
    if not (lengths.isfinite().all() and longest.isfinite()):
        raise EvalError("features hold NaN or infinity, which have no neighbours: is the model's file whole?")
    rounding = (rounding_of_products(held.width) * lengths * longest).cpu()
    numbers = torch.arange(part.start, part.stop)
    home = asked.parts[0].device
    values, index = (
        torch.empty(len(numbers), k, device=home),
        torch.empty(len(numbers), k, dtype=torch.int64, device=home),
    )
    open_ones = torch.arange(len(numbers))  # queries whose neighbours aren't certain yet
    for count in (few, many):
        some = open_ones.to(device)
        near, candidates = _best(found[0][some], found[1][some], count)
        best = compare_again(asked, numbers[open_ones], held, candidates, k, device)
        values[open_ones.to(home)], index[open_ones.to(home)] = best
        if count == len(held):
            return values, index
        # no other row's fp32 product is above the least of the candidates'
        beyond = near.amin(dim=1).cpu() + rounding[open_ones]
        open_ones = open_ones[best[0][:, -1].cpu() <= beyond]
        if not len(open_ones):
            return values, index
    rest = _among_all(asked, numbers[open_ones], held, k, device, chunk)
    values[open_ones.to(home)], index[open_ones.to(home)] = rest
    return values, index


def _candidates(
    queries: Tensor, held: Rows, count: int, search: Search, chunk: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """fp32 products and row numbers (Q, count) of the best rows, in any order, and the length of the longest row."""
    device = queries.device
    found = torch.empty(len(queries), 0, device=device), torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    longest = torch.zeros((), device=device)
    for start in range(0, len(held), chunk):
        rows = held.read(slice(start, start + chunk), torch.float32, device)
        longest = torch.maximum(longest, rows.norm(dim=1).max())
        values, index = search(queries, rows, min(count, len(rows)))
        found = _best(torch.cat([found[0], values], dim=1), torch.cat([found[1], index + start], dim=1), count)
    return found, longest


def rounding_of_products(width: int) -> float:
    """Most by which an fp32 product differs from the exact one, for rows of length 1.

    Each of D additions errs by up to u = 2^-24 of its partial sum, itself at most 1 (Cauchy and Schwarz): D u in the
    worst case, where all errors have one sign. They act as if independent (Higham and Mary, 2019), and then have the
    standard deviation u sqrt(D) / 3 if the sum grows evenly to 1, the worst for a sum in any order; scaling both rows
    to length 1 in fp32 makes it 1.2 times as large. The bound is nearly 20 of these; what remains (products, the
    scaling itself, the result in fp32) errs by a few u.
    """
    return (min(width, SIGMAS * width**0.5) + 16) * 2.0**-24


def _best(values: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, or all, (Q, n) -> (Q, c); which of equal ones is open."""
    top = values.topk(min(count, values.shape[1]), dim=1, sorted=False)
    return top.values, index.gather(1, top.indices)


def compare_again(
    asked: Rows, which: Tensor, held: Rows, candidates: Tensor, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The k best of the candidates (n, c) of the queries ``which`` (n,), by fp64 products rounded to fp32."""
    place, home = place_of_doubles(device), asked.parts[0].device
    # One allocation for all results: small ones, kept between blocks, would leave the blocks' memory in pieces.
    values = torch.empty(len(candidates), min(k, candidates.shape[1]), device=home)
    found = torch.empty(values.shape, dtype=torch.int64, device=home)
    step = max(1, ELEMENTS // (candidates.shape[1] * held.width))
    for start in range(0, len(candidates), step):
        part = slice(start, start + step)
        index = candidates[part].to(place).sort(dim=1).values
        query = asked.read(which[part], torch.float64, place)
        rows = held.read(index.flatten(), torch.float64, place).view(*index.shape, -1)
        values[part], found[part] = _first(torch.einsum("qcd,qd->qc", rows, query).float(), index, k)
    return values, found


def _among_all(
    asked: Rows, which: Tensor, held: Rows, k: int, device: torch.device, chunk: int
) -> tuple[Tensor, Tensor]:
    """Neighbours of the queries ``which`` (n,), every product in fp64."""
    place, home = place_of_doubles(device), asked.parts[0].device
    found = []
    for some in which.split(TILE):
        queries = asked.read(some, torch.float64, place)
        values = torch.empty(len(some), 0, device=place)
        index = torch.empty(len(some), 0, dtype=torch.int64, device=place)
        for start in range(0, len(held), chunk):
            products = (queries @ held.read(slice(start, start + chunk), torch.float64, place).T).float()
            numbers = torch.arange(start, start + products.shape[1], device=place).expand_as(products)
            numbers = torch.cat([index, numbers], dim=1)
            values, index = _first(torch.cat([values, products], dim=1), numbers, k)
            order = index.argsort(dim=1)  # the next step needs them by number
            values, index = values.gather(1, order), index.gather(1, order)
        found.append(_first(values, index, k))
    values, index = (torch.cat(tensors).to(home) for tensors in zip(*found, strict=True))
    return values, index


def _first(values: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest, falling, equal ones by rising index: (Q, n), index rising within rows -> (Q, min(k, n))."""
    k = min(k, values.shape[1])
    least = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > least, values == least
    wanted = above | (equal & (equal.cumsum(dim=1) <= k - above.sum(dim=1, keepdim=True)))
    kept, numbers = values[wanted].view(-1, k), index[wanted].view(-1, k)
    order = kept.argsort(dim=1, descending=True, stable=True)
    return kept.gather(1, order), numbers.gather(1, order)


def place_of_doubles(device: torch.device) -> torch.device:
    """The device itself if it computes in fp64, else the CPU."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return torch.device("cpu")
    return device
