"""What a RASA head changed: how well position is predicted, where clusters lie, how much of the features went."""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from franca.eval.protocols.clusters import kmeans
from franca.eval.protocols.position import PositionScore, position_error
from franca.eval.protocols.position_entropy import PositionEntropy, position_entropy
from franca.models import RASAHead
from rasa.crops import Crops
from rasa.errors import RasaError
from rasa.features import Engine
from rasa.fold import rasa_matrix

PATCHES_PER_CLUSTER, MOST_CLUSTERS = 50, 512
CPU = torch.device("cpu")


@dataclass(frozen=True)
class State:
    """Measured on features as they are, before or after."""

    linear: PositionScore  # of a fresh linear predictor with an intercept
    sigmoid: PositionScore  # of a fresh predictor of the paper's form
    entropy: PositionEntropy


@dataclass(frozen=True)
class Evidence:
    """Both sides, on the same crops of images that were set apart. Predictors are fitted to others of these."""

    before: State
    after: State
    variance_removed: float  # share of the features' variance within what was removed
    fitted_on: int  # crops
    scored_on: int
    clusters: int

    def numbers(self) -> dict[str, dict[str, float] | float]:
        """The chief numbers, as plain types."""
        sides = {"before": self.before, "after": self.after}
        return {
            **{name: _numbers(side) for name, side in sides.items()},
            "variance_removed": self.variance_removed,
            "crops_fitted_on": self.fitted_on,
            "crops_scored_on": self.scored_on,
            "clusters": self.clusters,
        }


def _numbers(state: State) -> dict[str, float]:
    return {
        "position_rmse": state.linear.rmse,
        "position_rmse_by_chance": state.linear.chance_rmse,
        "position_r2": state.linear.r2,
        "position_r2_sigmoid": state.sigmoid.r2,
        "cluster_entropy_of_chance": state.entropy.mean,
    }


def gather(engine: Engine, crops: Crops, count: int) -> Tensor:
    """Full grids of patch features of at most `count` crops, (V, h, w, D) fp32 on the CPU."""
    batches = -(-count // crops.config.batch_size)
    return torch.cat([batch.cpu() for batch in islice(engine.batches(crops), batches)])[:count]


def measure(
    probe: Tensor, test: Tensor, head: RASAHead, clusters: int, seed: int, device: torch.device = CPU
) -> Evidence:
    """Evidence from features (V, h, w, D) of images that the head was not fitted to.

    Args:
        probe, test: fresh predictors are fitted to the first and scored on the second; of different images.
        clusters: of k-means on `test`; 0: one for every 50 patches, 512 at most.
        device: where to compute, if it knows float64.

    Raises:
        RasaError: too few crops for a predictor of position.
    """
    device = CPU if device.type == "mps" else device
    probe, test, matrix = probe.float(), test.float(), rasa_matrix(head).float()
    k = clusters or max(2, min(test[..., 0].numel() // PATCHES_PER_CLUSTER, MOST_CLUSTERS))
    debiased = test @ matrix
    try:
        before = _state(probe, test, k, seed, device)
        after = _state(probe @ matrix, debiased, k, seed, device)
    except ValueError as error:
        raise RasaError(f"no evidence: {error}. More images, a higher data.views, or evidence.crops=0") from error
    return Evidence(
        before=before,
        after=after,
        variance_removed=(_variance(test - debiased) / _variance(test)).item(),
        fitted_on=len(probe),
        scored_on=len(test),
        clusters=k,
    )


def _variance(features: Tensor) -> Tensor:
    return features.flatten(0, 2).var(dim=0).sum()


def _state(probe: Tensor, test: Tensor, k: int, seed: int, device: torch.device) -> State:
    _, h, w, _ = test.shape
    clusters = kmeans(test.flatten(0, 2), k, seed=seed, device=device)
    return State(
        linear=position_error(probe, test, device=device),
        sigmoid=position_error(probe, test, "sigmoid", device=device),
        entropy=position_entropy(clusters.assignment, h, w, k),
    )
