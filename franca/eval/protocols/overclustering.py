"""Over-clustering: how well do clusters of patch features agree with classes of pixels? (paper Appendix C, Table 9)

The protocol is that of Ziegler and Asano (2022). Patch features are standardised and reduced to 50 principal
components; k-means makes many more clusters of them than there are classes; each cluster goes to the class that most of
its pixels have; the merged clusters are matched to classes one to one. Labels are used for matching alone.

Legend: N images, h x w patches each, D features, K clusters, C classes, S x S pixels of a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from franca.distributed import is_main
from franca.eval.context import Context
from franca.eval.datasets import SegmentationSource
from franca.eval.metrics.segmentation import confusion_matrix, hungarian, mean_iou, renamed
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.clusters import Clusters, assign, kmeans
from franca.eval.protocols.progress_file import ProgressFile
from franca.eval.protocols.projection import principal_components
from franca.eval.protocols.segmentation_task import with_masks
from franca.eval.result import Score
from franca.eval.views import Squash

IMAGES_AT_ONCE = 256


@dataclass
class OverclusteringConfig:
    """Settings of the paper; where it says nothing, those of the protocol that it follows.

    clusters: how many, one score each. As many as classes, or fewer, are matched one to one.
    size: side of the images in pixels, whole images squashed to a square. mask_size: of their masks.
    components: principal components of the standardised features that are clustered; 0: the features as they are.
    rows_per_cluster: k-means is fitted to so many random patches per cluster (256 is the habit of faiss, which the
    paper used), then all patches go to their nearest centre; 0: fitted to all.
    iterations, restarts: of k-means; the restart of least inertia counts. seeds: one value of the score each.
    """

    clusters: list[int] = field(default_factory=lambda: [100, 300])
    size: int = 448
    mask_size: int = 100
    components: int = 50
    rows_per_cluster: int = 256
    iterations: int = 100
    restarts: int = 5
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        if not self.clusters or min(self.clusters) < 2:
            raise ValueError(f"clusters={self.clusters}: name one number or more, each at least 2")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: name one or more different seeds")
        for name in ("size", "mask_size", "iterations", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name in ("components", "rows_per_cluster"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")


def match_clusters(counts: Tensor) -> Tensor:
    """The class of every cluster, (C, K) pixels by class and cluster -> (K,) int64.

    Greedy by precision first: a cluster goes to the class of most of its pixels. Then the merged clusters, one for
    each class, are matched to classes by the Hungarian method, for the largest sum of IoU. No more clusters than
    classes: the Hungarian method alone.
    """
    classes, clusters = counts.shape
    if clusters <= classes:
        return hungarian(counts)
    greedy = counts.argmax(dim=0)
    return hungarian(renamed(counts, greedy)[:, :classes])[greedy]


def count_pixels(assignment: Tensor, masks: Tensor, clusters: int, classes: int) -> Tensor:
    """Pixels by class and cluster, without void ones: (N, h, w) and (N, S, S) -> (C, K) int64.

    A pixel has the cluster of the patch that it lies in.
    """
    counts = torch.zeros(classes, clusters, dtype=torch.int64)
    for start in range(0, len(masks), IMAGES_AT_ONCE):
        wanted = masks[start : start + IMAGES_AT_ONCE]
        # numbers below 2^24 are exact in fp32
        coarse = assignment[start : start + IMAGES_AT_ONCE, None].float()
        found = interpolate(coarse, wanted.shape[-2:], mode="nearest-exact")[:, 0].long()
        counts += confusion_matrix(found, wanted, classes, predicted_classes=clusters)
    return counts


def cluster_patches(
    rows: Tensor, clusters: int, config: OverclusteringConfig, seed: int, device: torch.device
) -> Tensor:
    """Cluster of every row (R, P) -> (R,) int64: the best of several k-means."""
    fitted_to = rows
    if 0 < config.rows_per_cluster * clusters < len(rows):
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        fitted_to = rows[chosen[: config.rows_per_cluster * clusters].sort().values]
    best: Clusters | None = None
    for restart in range(config.restarts):
        number = seed * config.restarts + restart
        found = kmeans(fitted_to, clusters, config.iterations, number, normalize=False, device=device)
        best = found if best is None or found.inertia < best.inertia else best
    assert best is not None
    return best.assignment if fitted_to is rows else assign(rows, best.centres, normalize=False, device=device)


def run(context: Context, task: Task, config: OverclusteringConfig) -> Iterator[Score]:
    """mIoU for every number of clusters and every slice of the features, over seeds."""
    stored = context.store.patches(task.test, Squash(config.size))
    if not is_main():
        return
    source = with_masks(task.test.source)
    masks = read_masks(context, source, stored.index, config.mask_size)
    features = stored.patches  # (N, h, w, D)
    with ProgressFile(context.output / "overclustering.progress") as progress:
        for name, width in context.widths(features.shape[-1]).items():
            rows = reduced(features.flatten(0, 2)[:, :width], config.components, context.device)
            for clusters in config.clusters:
                values = []
                for seed in context.track(config.seeds, f"k-means, {clusters} clusters, {name}"):
                    value = progress.get(what := f"{name}, {clusters} clusters, seed {seed}")
                    if value is None:
                        assignment = cluster_patches(rows, clusters, config, seed, context.device)
                        value = agreement(assignment.view(features.shape[:3]), masks, clusters, len(source.classes))
                        progress.keep(what, value)
                    values.append(100 * value)
                yield Score(
                    metric="miou",
                    value=sum(values) / len(values),
                    values=tuple(values),
                    seeds=tuple(config.seeds),
                    settings={"clusters": clusters},
                    slice=name,
                    resolution=f"{config.size}, masks {config.mask_size}",
                )


def agreement(assignment: Tensor, masks: Tensor, clusters: int, classes: int) -> float:
    """Mean IoU in [0, 1] of clusters (N, h, w), each given a class, and masks (N, S, S)."""
    counts = count_pixels(assignment, masks, clusters, classes)
    return mean_iou(renamed(counts, match_clusters(counts)))


def read_masks(context: Context, source: SegmentationSource, numbers: Tensor, size: int) -> Tensor:
    """Masks of the images with these numbers, (N, size, size) uint8."""
    view = Squash(size)
    read = context.track(numbers.tolist(), "masks")
    return torch.stack([view.mask(source.mask(number)) for number in read])


def reduced(rows: Tensor, components: int, device: torch.device) -> Tensor:
    """Rows (R, D) as k-means gets them: principal components of the standardised features (fp32), if any are wanted.

    Without, the rows themselves, of any type: k-means reads them in blocks.
    """
    if not components:
        return rows
    projection = principal_components(rows, components, standardize=True, device=device)
    return torch.cat([projection(part.to(device)).cpu() for part in rows.split(1 << 16)])


PROTOCOL = Protocol(config=OverclusteringConfig, run=run)
