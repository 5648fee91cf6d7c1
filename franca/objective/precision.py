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


def factor_type(tensor: Tensor) -> torch.dtype:
    """Type of the factors of the prototypes' products: the tensor's own, fp32 at least, without autocast.

    Under autocast fp16 where its products come out in fp32 (rows and prototypes have unit length: the range suffices
    and three bits are won), else what autocast computes in.
    """
    device = tensor.device.type
    if not is_mixed(tensor.device):
        return torch.promote_types(tensor.dtype, torch.float32)
    return torch.float16 if _sums_come_out_in_full(device) else torch.get_autocast_dtype(device)


def product(left: Tensor, right: Tensor) -> Tensor:
    """(n, m) @ (m, k), in fp32 where the device gives fp32 sums of fp16 factors; autocast must be off."""
    if left.dtype == torch.float16 and _sums_come_out_in_full(left.device.type):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


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
    """Whether this kind of device gives fp32 sums of fp16 products."""
    one = torch.ones(1, 1, dtype=torch.float16, device=device)
    try:
        torch.mm(one, one, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError):
        return False
    return True
