"""How much do patch features say about where the patch lies? (paper Sec. 2.3 and Fig. 6)

Two answers: how well a fresh linear predictor, fitted on some images, finds row and column on others; and whether
clusters of patches are spread over the image or tied to a place.

Legend: I images, h x w patches each, D features per patch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.protocols.clusters import kmeans
from franca.eval.protocols.position import PositionScore, position_error, score_positions
from franca.eval.protocols.position_entropy import PositionEntropy, position_entropy
from franca.eval.protocols.position_moments import fit_ridge

PATCHES_PER_CLUSTER = 50
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Prediction:
    """How well fresh predictors find the position, fitted on some images and scored on others."""

    linear: PositionScore  # ridge regression with an intercept
    sigmoid: PositionScore  # the paper's form


def predict_position(first: Tensor, second: Tensor, scored: Tensor, device: torch.device = CPU) -> Prediction:
    """Predictors from features (I, h, w, D) of two sets of images, scored on a third.

    Args:
        first, second: predictors are fitted on both; the strength of the ridge is the one with which a fit to the first
            errs least on the second. scored: of other images.
        device: where to compute, if it knows float64; else the CPU does.

    Raises:
        ValueError: too few images.
    """
    device = float64_device(device)
    return Prediction(
        linear=score_positions(fit_ridge(first, second), scored, device=device),
        sigmoid=position_error(torch.cat([first, second]), scored, "sigmoid", device=device),
    )


def cluster_entropy(
    features: Tensor, clusters: int, iterations: int = 50, seed: int = 0, device: torch.device = CPU
) -> PositionEntropy:
    """Entropy of positions in each of the clusters that k-means makes of features (I, h, w, D).

    Raises:
        ValueError: fewer than two images, or more clusters than patches.
    """
    _, h, w, _ = features.shape
    found = kmeans(features.flatten(0, 2), clusters, iterations, seed, device=float64_device(device))
    return position_entropy(found.assignment, h, w, clusters)


def suitable_clusters(features: Tensor, most: int) -> int:
    """One cluster for every 50 patches of features (I, h, w, D), at least 2 and at most ``most``."""
    return max(2, min(features[..., 0].numel() // PATCHES_PER_CLUSTER, most))


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU for one without float64."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except TypeError:
        return CPU
    return device
