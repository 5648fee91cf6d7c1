"""Nearest neighbours when several processes search: each for its part of the queries."""

from dataclasses import replace

import torch
from torch import Tensor

from franca.distributed import gather_rows, rank, world_size
from franca.eval.neighbours import Rows, nearest


def nearest_of_ranks(
    queries: Rows, memory: Rows, k: int, device: torch.device, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """`nearest`, which all processes call with the same rows on the CPU; every one has the whole result."""
    if world_size() == 1:
        return nearest(queries, memory, k, device, cosine)
    each = -(-len(queries) // world_size())
    own = torch.arange(rank() * each, (rank() + 1) * each).clamp_max(len(queries) - 1)  # of one length on every rank
    part = replace(queries, chosen=own if queries.chosen is None else queries.chosen[own])
    values, index = nearest(part, memory, k, device, cosine)
    return gather_rows(values)[: len(queries)], gather_rows(index)[: len(queries)]
