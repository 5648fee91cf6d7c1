"""Which vectors to compare when there are too many to compare all: those near the same centroids.

k-means on the sphere over a sample; every vector belongs to its nearest centroid and is compared with the members of
its `probes` nearest ones. What is found are real pairs, some may be missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from franca.data.preparation.vectors import Embeddings, Floats, Integers

SAMPLES = 64  # vectors for each centroid
ROUNDS = 10
ROWS = 4096  # compared with all centroids at a time


def train_centroids(vectors: Embeddings, clusters: int, device: torch.device) -> Floats:
    """(clusters, D), from vectors at equal distances in their order; no random state is used."""
    wanted = min(len(vectors), SAMPLES * clusters)
    numbers = np.unique(np.linspace(0, len(vectors) - 1, wanted).astype(np.int64))
    sample = torch.from_numpy(vectors.rows(numbers)).to(device)
    centroids = sample[torch.linspace(0, len(sample) - 1, clusters).long().to(device)]
    for _ in range(ROUNDS):
        owner = torch.cat([nearest(part, centroids, 1)[:, 0] for part in sample.split(ROWS)])
        sums = torch.zeros_like(centroids).index_add_(0, owner, sample)
        length = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(length > 0, sums / length.clamp_min(1e-12), centroids)  # an empty one stays
    return centroids.cpu().numpy()


def nearest(vectors: Tensor, centroids: Tensor, probes: int) -> Tensor:
    """(n, D), (K, D) -> (n, probes): numbers of the nearest centroids, the nearest first."""
    return (vectors @ centroids.T).topk(probes, dim=1).indices


@dataclass(frozen=True)
class Neighbourhood:
    """Vectors that are compared: each of `probing` with each of `members`, both ascending."""

    probing: Integers
    members: Integers


def neighbourhoods(assigned: NDArray[np.int32], clusters: int) -> Iterator[Neighbourhood]:
    """One for every centroid. assigned: (N, probes), the nearest centroids of each vector, the nearest first."""
    probing, members = (_lists(column, clusters) for column in (assigned, assigned[:, :1]))
    for some, others in zip(probing, members, strict=True):
        yield Neighbourhood(some, others)


def _lists(assigned: NDArray[np.int32], clusters: int) -> Iterator[Integers]:
    """For every cluster, the ascending rows in which it stands."""
    flat = assigned.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat, np.arange(clusters + 1), sorter=order)
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield order[start:end].astype(np.int64) // assigned.shape[1]
