"""Triton kernel of the cross-entropy and its gradient, for one or two targets; `triton_kernels` explains its sums."""

import triton
import triton.language as tl

from franca.objective import chunked
from franca.objective.triton_kernels import LOWEST, add, bounded, takes_part

GAIN = tl.constexpr(chunked.GAIN)


@triton.jit
def cross_entropy_kernel(
    logits,
    gradient,
    loss,
    values_a,
    potentials_a,
    scale_a,
    valid_a,
    HAS_VALID_A: tl.constexpr,
    values_b,
    potentials_b,
    scale_b,
    valid_b,
    HAS_VALID_B: tl.constexpr,
    rows,
    width,
    views,
    scale,
    LEARN_FROM_A: tl.constexpr,
    LEARN_FROM_B: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per row of a view; views of a row stand together, since they read the same rows of targets.

    LEARN_FROM_A: bit c says whether view c learns from target a; LEARN_FROM_B is 0 without a second target.
    gradient may be logits: an entry is read before its gradient is written, by the program that does both.
    """
    view = (tl.program_id(0) % views).to(tl.int64)
    row = (tl.program_id(0) // views).to(tl.int64)
    from_a = _learns(LEARN_FROM_A, view) & takes_part(valid_a, row, rows, HAS_VALID_A)
    from_b = _learns(LEARN_FROM_B, view) & takes_part(valid_b, row, rows, HAS_VALID_B)
    takes = from_a | from_b
    logits += (view * rows + row) * width
    values_a, values_b = values_a + row * width, values_b + row * width
    factor_a, factor_b = tl.load(scale_a), tl.load(scale_b)

    peak = tl.full((COLUMNS,), LOWEST, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    peak_a, total_a, expected_a = peak, total, total
    peak_b, total_b, expected_b = peak, total, total
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        student = _student(logits, columns, inside & takes, scale)
        before = peak
        peak, total = add(peak, total, student)
        fall, below = before - peak, student - peak
        teacher = _teacher(values_a, potentials_a, columns, inside & from_a, factor_a)
        peak_a, total_a, expected_a = _expect(peak_a, total_a, expected_a, teacher, fall, below)
        if LEARN_FROM_B:
            teacher = _teacher(values_b, potentials_b, columns, inside & from_b, factor_b)
            peak_b, total_b, expected_b = _expect(peak_b, total_b, expected_b, teacher, fall, below)

    highest = tl.max(peak, axis=0)
    fall = peak - highest
    sums = tl.sum(total * tl.exp(fall), axis=0)
    mass = tl.where(from_a, 1.0, 0.0)
    highest_a, rate_a, expected = _join(peak_a, total_a, expected_a, fall, mass)
    highest_b, rate_b = highest_a, rate_a
    if LEARN_FROM_B:
        more = tl.where(from_b, 1.0, 0.0)
        highest_b, rate_b, expected_too = _join(peak_b, total_b, expected_b, fall, more)
        mass, expected = mass + more, expected + expected_too
    tl.store(loss + view * rows + row, mass * tl.log(sums) - expected)

    if GRADIENT:
        gradient += (view * rows + row) * width
        tiles = tl.cdiv(width, COLUMNS)
        for back in range(tiles):  # from the row's end: what was read last is still in the cache
            columns = (tiles - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)
            inside = columns < width
            slope = tl.exp(_student(logits, columns, inside & takes, scale) - highest) * (mass / sums)
            teacher = _teacher(values_a, potentials_a, columns, inside & from_a, factor_a)
            slope -= tl.exp(teacher - highest_a) * rate_a
            if LEARN_FROM_B:
                teacher = _teacher(values_b, potentials_b, columns, inside & from_b, factor_b)
                slope -= tl.exp(teacher - highest_b) * rate_b
            tl.store(gradient + columns, (slope * GAIN).to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _learns(FROM: tl.constexpr, view):
    return ((FROM >> view) & 1) != 0


@triton.jit
def _student(logits, columns, here, scale):
    return bounded(tl.load(logits + columns, mask=here, other=0.0).to(tl.float32) * scale, here)


@triton.jit
def _teacher(values, potentials, columns, here, factor):
    """L + u."""
    given = tl.load(values + columns, mask=here, other=0.0).to(tl.float32)
    return bounded(given * factor + tl.load(potentials + columns, mask=here, other=0.0), here)


@triton.jit
def _expect(highest, total, expected, entry, fall, below):
    """`_add`, and the running sum of exp(entry - maximum) * below.

    below: the student's entry less its running maximum, which has just changed by -fall.
    """
    gap = entry - highest
    other = tl.exp(-tl.abs(gap))
    rises = gap > 0
    kept, joins = tl.where(rises, other, 1.0), tl.where(rises, 1.0, other)
    expected = (expected + total * fall) * kept + joins * below
    return tl.where(rises, entry, highest), total * kept + joins, expected


@triton.jit
def _join(highest, total, expected, fall, mass):
    """Of all places of the tile: the maximum, mass / sum, and the expected value."""
    peak = tl.max(highest, axis=0)
    share = tl.exp(highest - peak)
    rate = mass / tl.sum(total * share, axis=0)
    return peak, rate, tl.sum((expected + total * fall) * share, axis=0) * rate
