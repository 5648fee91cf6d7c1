"""Process group and collectives: the same calls with one process and with many."""

import torch
import torch.distributed as dist
from torch import Tensor


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number in the default group; 0 without one."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """How many processes the default group has; 1 without one."""
    return dist.get_world_size() if _is_initialized() else 1


@torch.no_grad()
def logsumexp_over_ranks(local: Tensor) -> Tensor:
    """log(sum over ranks of exp(local)), element by element, any shape, same on every rank.

    One maximum and one sum over the group, without gradient. -inf stands for "nothing here": a rank that holds -inf
    changes nothing, and -inf on all ranks gives -inf. Without a process group, or alone in it, `local` is returned.
    """
    if world_size() == 1:
        return local
    peak = local.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    peak = peak.masked_fill(peak.isneginf(), 0.0)  # -inf minus -inf would be NaN
    total = (local - peak).exp()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total.log() + peak
