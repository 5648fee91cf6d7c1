"""Passes over stored logits in plain PyTorch, a block of rows at a time, so that all steps of a block meet its cache.

N rows, K prototypes. Each function makes one exponential per entry; `franca.objective.passes` says where they run.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from franca.objective.blocks import row_blocks
from franca.objective.precision import STORED, precise

if TYPE_CHECKING:
    from franca.objective.assignments import Assignments, Scores

BLOCK = 2**18  # entries: 1 MB in fp32, the second-level cache of a core
GAIN = 4096.0  # of gradients, whose entries 1 / K would lie among fp16's subnormal numbers
LEAST = -80.0  # exp(-80) is nothing beside a peak of 1, and results that underflow make exp ten times slower on a CPU


def store(logits: Tensor, values: Tensor, peaks: Tensor, valid: Tensor | None) -> None:
    """Write logits (n, K) as values and peaks; they are lost."""
    logits = precise(logits)
    if valid is not None:
        logits.masked_fill_(~valid[:, None], 0.0)  # whatever stands there, NaN too
    torch.amax(logits, dim=1, out=peaks)
    logits.sub_(peaks[:, None])
    if values.dtype == STORED:
        logits.clamp_(min=torch.finfo(STORED).min)
    values.copy_(logits)


def column_logsumexp(scores: "Scores", scale: Tensor) -> Tensor:
    """log sum over rows of exp(logits * scale), (K,); -inf without a row that takes part."""
    peak = scale.new_full((scores.values.shape[1],), -torch.inf)
    for block in _scaled(scores, scale):
        torch.maximum(peak, block.amax(dim=0), out=peak)
    shift = peak.masked_fill(peak.isneginf(), 0.0)
    total = torch.zeros_like(peak)
    for block in _scaled(scores, scale):
        total += block.sub_(shift).clamp_(min=LEAST).exp_().sum(dim=0)
    return total.log_().add_(peak)


def column_sums(assignments: "Assignments") -> Tensor:
    """Mass of every prototype over the rows, (K,): the column sums of the assignments."""
    total = torch.zeros_like(assignments.potentials)
    rows, width = assignments.scores.values.shape
    buffer = total.new_empty(_block_entries(total.device, rows, width))
    for part in row_blocks(rows, width, _block(total.device)):
        block, sums = _exponentials(assignments[part], buffer)
        total.addmv_(block.T, sums.reciprocal() * _taking_part(assignments.scores, part, sums))
    return total


def cross_entropy(
    logits: Tensor,
    targets: Sequence["Assignments"],
    teachers: Sequence[tuple[int, ...]],
    scale: float,
    gradient: Tensor | None,
) -> Tensor:
    """-sum_k q_nk log softmax_k(logits * scale) of C views of N rows, (C, N, K) -> (C, N).

    View c learns from the sum q of those targets, (N, K) each, whose numbers are teachers[c]. gradient: (C, N, K), is
    set to GAIN * (q's mass * softmax(logits * scale) - q); its row weights and `scale` are left to the caller.
    """
    views, rows, width = logits.shape
    loss = targets[0].potentials.new_empty(views, rows)
    groups = [(key, list(group)) for key, group in groupby(range(views), key=teachers.__getitem__)]
    largest = max(len(group) for _, group in groups)
    entries = _block_entries(loss.device, rows, width)
    buffers = [loss.new_empty(entries) for _ in targets]
    work, product = loss.new_empty(largest * entries), loss.new_empty(largest * entries)
    for part in row_blocks(rows, width, _block(loss.device)):
        single, taking_part = [], []
        for target, buffer in zip(targets, buffers, strict=True):
            block, sums = _exponentials(target[part], buffer)
            taking_part.append(_taking_part(target.scores, part, sums))
            single.append(block.mul_((taking_part[-1] / sums)[:, None]))
        for key, group in groups:
            of_group = slice(group[0], group[-1] + 1)
            wanted = single[key[0]] if len(key) == 1 else torch.stack([single[number] for number in key]).sum(dim=0)
            mass = torch.stack([taking_part[number] for number in key]).sum(dim=0)
            given = logits[of_group, part]
            scaled = work[: given.numel()].view(given.shape).copy_(given).mul_(scale)
            scaled.sub_(scaled.amax(dim=-1, keepdim=True))
            expected = torch.mul(scaled, wanted, out=product[: given.numel()].view(given.shape)).sum(dim=-1)
            total = scaled.clamp_(min=LEAST).exp_().sum(dim=-1)
            loss[of_group, part] = mass * total.log() - expected
            if gradient is not None:
                scaled.mul_((GAIN * mass / total)[..., None]).sub_(wanted, alpha=GAIN)
                gradient[of_group, part] = scaled
    return loss


def _scaled(scores: "Scores", scale: Tensor) -> Iterator[Tensor]:
    """Blocks of logits * scale, in one buffer; -inf in rows that take no part."""
    rows, width = scores.values.shape
    buffer = scale.new_empty(_block_entries(scale.device, rows, width))
    for part in row_blocks(rows, width, _block(scale.device)):
        given = scores.values[part]
        block = buffer[: given.numel()].view(given.shape).copy_(given)
        block.add_(scores.peaks[part, None]).mul_(scale)
        if scores.valid is not None:
            block.masked_fill_(~scores.valid[part, None], -torch.inf)
        yield block


def _exponentials(assignments: "Assignments", buffer: Tensor) -> tuple[Tensor, Tensor]:
    """exp(L + u - largest of the row) in the buffer, (n, K), and its row sums, (n,)."""
    given = assignments.scores.values
    block = buffer[: given.numel()].view(given.shape).copy_(given)
    block.mul_(assignments.scale).add_(assignments.potentials)
    block.sub_(block.amax(dim=1, keepdim=True)).clamp_(min=LEAST).exp_()
    return block, block.sum(dim=1)


def _taking_part(scores: "Scores", part: slice, like: Tensor) -> Tensor:
    """1 for rows that take part, 0 for others, (n,)."""
    return torch.ones_like(like) if scores.valid is None else scores.valid[part].to(like.dtype)


def _block(device: torch.device) -> int:
    return BLOCK if device.type == "cpu" else 64 * BLOCK


def _block_entries(device: torch.device, rows: int, width: int) -> int:
    """Entries of the largest block of `row_blocks`."""
    return min(max(_block(device), width), rows * width)
