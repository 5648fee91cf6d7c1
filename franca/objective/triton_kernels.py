"""Triton kernels of the passes over stored logits; `franca.objective.triton_passes` launches them.

N rows, K prototypes; names of pointers are those of `Scores` and `Assignments`. A running maximum and a running sum are
kept for every place of a tile, and joined once after the last tile: an entry costs one exponential, as of the old and
the new maximum one is the entry or the sum itself. Sums over tiles are written as partial results, never by atomics:
results are the same in every run. Comparisons are written so that NaN passes through sums and becomes visible.
"""

import triton
import triton.language as tl

from franca.objective import chunked

LEAST = tl.constexpr(chunked.LEAST)
LOWEST = tl.constexpr(-1e30)  # stands for -inf, whose differences would be NaN


@triton.jit
def takes_part(valid, row, rows, HAS_VALID: tl.constexpr):
    """Whether a row takes part, or which of several."""
    if HAS_VALID:
        return tl.load(valid + row, mask=row < rows, other=0) != 0
    return row < rows


@triton.jit
def bounded(entry, here):
    """Entries that count; LOWEST elsewhere."""
    return tl.where(here & ~(entry < LOWEST), entry, LOWEST)


@triton.jit
def add(highest, total, entry):
    """Running maximum, and running sum of exp(entry - maximum)."""
    gap = entry - highest
    other = tl.exp(-tl.abs(gap))
    rises = gap > 0
    return tl.where(rises, entry, highest), tl.where(rises, total * other + 1.0, total + other)


@triton.jit
def store_kernel(
    logits,
    values,
    peaks,
    valid,
    HAS_VALID: tl.constexpr,
    rows,
    width,
    lowest,
    COLUMNS: tl.constexpr,
):
    """One program per row: its maximum, then the row less its maximum."""
    row = tl.program_id(0).to(tl.int64)
    takes = takes_part(valid, row, rows, HAS_VALID)
    highest = tl.full((COLUMNS,), -float("inf"), tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        here = takes & (columns < width)
        given = tl.load(logits + row * width + columns, mask=here, other=-float("inf"))
        highest = tl.maximum(highest, given.to(tl.float32))
    peak = tl.where(takes, tl.max(highest, axis=0), 0.0)
    tl.store(peaks + row, peak)
    tiles = tl.cdiv(width, COLUMNS)
    for back in range(tiles):  # from the row's end: what was read last is still in the cache
        columns = (tiles - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < width
        given = tl.load(logits + row * width + columns, mask=takes & inside, other=0.0)
        less = given.to(tl.float32) - peak
        less = tl.where(less < lowest, lowest, less).to(values.dtype.element_ty)
        tl.store(values + row * width + columns, less, mask=inside)


@triton.jit
def column_logsumexp_kernel(
    values,
    peaks,
    valid,
    HAS_VALID: tl.constexpr,
    scale,
    partial,
    rows,
    width,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """log sum of exp(logits * scale) over PART rows, one program per tile of columns: (parts, K)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(scale)
    highest = tl.full((ROWS, COLUMNS), LOWEST, tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = tl.program_id(1) * PART
    for first in range(start, tl.minimum(start + PART, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        takes = takes_part(valid, row, rows, HAS_VALID)
        here = takes[:, None] & (columns < width)[None, :]
        places = row.to(tl.int64)[:, None] * width + columns[None, :]
        given = tl.load(values + places, mask=here, other=0.0).to(tl.float32)
        peak = tl.load(peaks + row, mask=takes, other=0.0)
        highest, total = add(highest, total, bounded((given + peak[:, None]) * factor, here))
    peak = tl.max(highest, axis=0)
    sums = tl.sum(total * tl.exp(highest - peak[None, :]), axis=0)
    empty = (peak == LOWEST) & (sums == sums)  # a NaN is no maximum either
    result = tl.where(empty, -float("inf"), peak + tl.log(sums))
    tl.store(partial + tl.program_id(1) * width + columns, result, mask=columns < width)


@triton.jit
def row_statistics_kernel(
    values,
    potentials,
    scale,
    peaks,
    totals,
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maximum and sum of exp(L + u - maximum) of every row, (N,) each; one program per tile of rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    factor = tl.load(scale)
    highest = tl.full((ROWS, COLUMNS), LOWEST, tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        here = (row < rows)[:, None] & (columns < width)[None, :]
        places = row.to(tl.int64)[:, None] * width + columns[None, :]
        given = tl.load(values + places, mask=here, other=0.0).to(tl.float32)
        shift = tl.load(potentials + tl.broadcast_to(columns[None, :], (ROWS, COLUMNS)), mask=here, other=0.0)
        highest, total = add(highest, total, bounded(given * factor + shift, here))
    peak = tl.max(highest, axis=1)
    sums = tl.sum(total * tl.exp(highest - peak[:, None]), axis=1)
    tl.store(peaks + row, peak, mask=row < rows)
    tl.store(totals + row, sums, mask=row < rows)


@triton.jit
def column_sums_kernel(
    values,
    potentials,
    scale,
    peaks,
    totals,
    valid,
    HAS_VALID: tl.constexpr,
    partial,
    rows,
    width,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of the assignments over PART rows, one program per tile of columns: (parts, K).

    peaks, totals: what `row_statistics_kernel` gave.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(scale)
    shift = tl.load(potentials + columns, mask=columns < width, other=0.0)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = tl.program_id(1) * PART
    for first in range(start, tl.minimum(start + PART, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        takes = takes_part(valid, row, rows, HAS_VALID)
        here = takes[:, None] & (columns < width)[None, :]
        places = row.to(tl.int64)[:, None] * width + columns[None, :]
        given = tl.load(values + places, mask=here, other=0.0).to(tl.float32)
        peak = tl.load(peaks + row, mask=takes, other=0.0)
        share = tl.where(takes, 1.0 / tl.load(totals + row, mask=takes, other=1.0), 0.0)
        below = given * factor + shift[None, :] - peak[:, None]
        sums += tl.exp(tl.where(here & ~(below < LEAST), below, LEAST)) * share[:, None]
    tl.store(partial + tl.program_id(1) * width + columns, tl.sum(sums, axis=0), mask=columns < width)
