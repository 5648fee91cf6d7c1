"""In which numbers the objective computes: products in 16 bit under autocast, sums and exponentials in fp32 or fp64."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from franca.objective.blocks import row_blocks, scores_at_once

STORED = torch.float16  # of logits less their row's largest: three bits more than bf16, and a range of 65,504 below it


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, on devices that have it."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def precise(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_mixed(device: torch.device) -> bool:
    """Whether autocast is on."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def factor_type(rows: Tensor) -> torch.dtype:
    """Type of the factors of the prototypes' products: the rows' own, fp32 at least, without autocast.

    Under autocast rows of unit length come in fp32. Their range suits fp16, which has three bits more than bf16: it is
    taken where fp16's products come out in fp32, else what autocast computes in. Rows that nothing bounds, of heads
    without normalisation, come in autocast's type and keep it.
    """
    device = rows.device.type
    if not is_mixed(rows.device):
        return torch.promote_types(rows.dtype, torch.float32)
    if rows.dtype.itemsize == 2:
        return rows.dtype
    return torch.float16 if _sums_come_out_in_full(device) else torch.get_autocast_dtype(device)


def product(left: Tensor, right: Tensor) -> Tensor:
    """(n, m) @ (m, k), in fp32 where the device gives fp32 sums of 16-bit factors; autocast must be off."""
    if left.dtype.itemsize == 2 and _sums_come_out_in_full(left.device.type):
        return _product_in_full(left, right)
    return torch.mm(left, right)


def _product_in_full(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right, out_dtype=torch.float32)


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, total in fp32 at least; autocast must be off."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
        return
    rows, width = total.shape
    for part in row_blocks(rows, width, scores_at_once(total.device)):
        total[part] += product(left[part], right)


@cache
def _sums_come_out_in_full(device: str) -> bool:
    """Whether this kind of device gives fp32 sums of products of 16-bit factors."""
    one = torch.ones(1, 1, dtype=torch.float16, device=device)
    try:
        _product_in_full(one, one)
    except (NotImplementedError, RuntimeError):
        return False
    return True
