"""Do clusters of patches stand for places? Entropy of the positions of each cluster's patches (paper Fig. 6).

Legend: I images, (h, w) patches in the grid of one image, N = h * w, k clusters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import entr, gammaln, xlogy


@dataclass(frozen=True)
class PositionEntropy:
    """Per cluster: where its patches lie, and the entropy of that in nats, beside what chance would give.

    A small cluster can't reach log N, so entropies of different clusters compare only relative to ``expected``: the
    mean entropy of as many patches drawn from all patches of all images without regard to position. A ratio of 1 means
    that position plays no part, 0 that all patches share one position. Things have their usual places too (sky is
    above), so a ratio below 1 is not all the model's doing: compare features of the same images.
    """

    counts: Tensor  # (k, h, w) int64: patches by cluster and position
    entropy: Tensor  # (k,) float64, nats; 0 for an empty cluster
    expected: Tensor  # (k,) float64, nats

    @property
    def size(self) -> Tensor:
        """Patches per cluster, (k,)."""
        return self.counts.sum(dim=(1, 2))

    @property
    def normalised(self) -> Tensor:
        """entropy / log N, (k,) in [0, 1]: biased low for small clusters."""
        return self.entropy / math.log(self.counts[0].numel())

    @property
    def ratio(self) -> Tensor:
        """entropy / expected, (k,); NaN for a cluster of fewer than two patches, which says nothing."""
        return torch.where(self.size > 1, self.entropy / self.expected, torch.nan)

    @property
    def mean(self) -> float:
        """Mean ratio over the clusters of two patches or more; NaN if there are none."""
        return self.ratio.nanmean().item()

    @property
    def weighted_mean(self) -> float:
        """The same, every cluster with the weight of its size: the mean over patches."""
        told = self.size > 1
        return ((self.ratio * self.size)[told].sum() / self.size[told].sum()).item()


def position_entropy(assignment: Tensor, h: int, w: int, k: int) -> PositionEntropy:
    """Entropy of patch positions in each of k clusters.

    Args:
        assignment: cluster of every patch, (I, N), (I, h, w) or (I * N,), integers from 0 to k - 1, image by image.

    Raises:
        ValueError: fewer than two images or patches, patches that don't fill the grid, or clusters outside 0..k-1.
    """
    cells, patches = h * w, assignment.numel()
    if cells < 2 or patches % cells or patches < 2 * cells:
        raise ValueError(f"{patches} patches on a grid of {h}x{w}: expected two images or more of h * w > 1 patches")
    flat = assignment.detach().flatten().cpu()
    if flat.is_floating_point() or flat.min() < 0 or flat.max() >= k:
        raise ValueError(f"clusters {flat.min()} to {flat.max()} ({flat.dtype}): expected integers from 0 to {k - 1}")
    images = patches // cells
    counts = (flat.long() * cells + torch.arange(cells).repeat(images)).bincount(minlength=k * cells).view(k, cells)
    size = counts.sum(dim=1)
    entropy = entr(counts / size.clamp_min(1)[:, None].double()).sum(dim=1)
    return PositionEntropy(counts.view(k, h, w), entropy, expected_entropy(size, images, cells))


def expected_entropy(size: Tensor, images: int, cells: int) -> Tensor:
    """Mean entropy of n patches drawn without replacement from ``cells`` positions held ``images`` times, (k,) -> (k,).

    H = log n - 1/n sum_cell c log c, and each count c is hypergeometric, so the mean is exact: nothing is simulated.
    """
    sizes, place = size.unique(return_inverse=True)
    values = [_expected_entropy(n, images, cells) for n in sizes.tolist()]
    return torch.tensor(values, dtype=torch.float64)[place]


def _expected_entropy(n: int, images: int, cells: int) -> float:
    if n < 2:
        return 0.0
    total = images * cells
    count = torch.arange(max(0, n - total + images), min(n, images) + 1, dtype=torch.float64)
    chance = (_log_choose(images, count) + _log_choose(total - images, n - count) - _log_choose(total, n)).exp()
    return math.log(n) - cells / n * (chance * xlogy(count, count)).sum().item()


def _log_choose(n: int, k: Tensor | int) -> Tensor:
    """log of n over k."""
    chosen = torch.as_tensor(k, dtype=torch.float64)
    return gammaln(torch.tensor(n + 1.0, dtype=torch.float64)) - gammaln(chosen + 1) - gammaln(n - chosen + 1)
