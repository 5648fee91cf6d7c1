"""What a RASA head changed: how well position is predicted, where clusters lie, how much of the features went."""

from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from franca.eval.protocols.position import PositionScore
from franca.eval.protocols.position_bias import cluster_entropy, predict_position, suitable_clusters
from franca.eval.protocols.position_entropy import PositionEntropy
from franca.models import RASAHead
from rasa.crops import Crops
from rasa.errors import RasaError
from rasa.features import Engine
from rasa.fold import rasa_matrix

MOST_CLUSTERS = 512
CPU = torch.device("cpu")


@dataclass(frozen=True)
class State:
    """Measured on features as they are, before or after."""

    linear: PositionScore  # of a fresh linear predictor: ridge regression with an intercept
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


@dataclass(frozen=True)
class Grids:
    """Full grids of patch features of some crops."""

    features: Tensor  # (V, h, w, D) fp32, on the CPU
    names: list[str]  # of their images

    def halves(self) -> tuple[Tensor, Tensor]:
        """Crops of every other image, and the rest; of a single image, every other crop."""
        images = {name: number for number, name in enumerate(sorted(set(self.names)))}
        numbers = range(len(self.names)) if len(images) < 2 else [images[name] for name in self.names]
        first = torch.tensor([number % 2 == 0 for number in numbers])
        return self.features[first], self.features[~first]


def gather(engine: Engine, crops: Crops, count: int) -> Grids:
    """The features of at most `count` crops."""
    batches = list(islice(engine.named_batches(crops), -(-count // crops.config.batch_size)))
    features = torch.cat([part.cpu() for part, _ in batches])[:count]
    return Grids(features, [name for _, names in batches for name in names][:count])


def measure(
    probe: Grids, test: Grids, head: RASAHead, clusters: int, seed: int, device: torch.device = CPU
) -> Evidence:
    """Evidence from the features of images that the head was not fitted to.

    Args:
        probe, test: fresh predictors are fitted to the first and scored on the second; of different images.
        clusters: of k-means on `test`; 0: one for every 50 patches, 512 at most.
        device: where to compute, if it knows float64.

    Raises:
        RasaError: too few crops for a predictor of position.
    """
    matrix = rasa_matrix(head).float()
    k = clusters or suitable_clusters(test.features, MOST_CLUSTERS)
    debiased = replace(test, features=test.features @ matrix)
    try:
        before = _state(probe, test, k, seed, device)
        after = _state(replace(probe, features=probe.features @ matrix), debiased, k, seed, device)
    except ValueError as error:
        raise RasaError(f"no evidence: {error}. More images, a higher data.views, or evidence.crops=0") from error
    return Evidence(
        before=before,
        after=after,
        variance_removed=(_variance(test.features - debiased.features) / _variance(test.features)).item(),
        fitted_on=len(probe.names),
        scored_on=len(test.names),
        clusters=k,
    )


def _variance(features: Tensor) -> Tensor:
    return features.flatten(0, 2).var(dim=0).sum()


def _state(probe: Grids, test: Grids, k: int, seed: int, device: torch.device) -> State:
    found = predict_position(*probe.halves(), test.features, device)
    return State(found.linear, found.sigmoid, cluster_entropy(test.features, k, seed=seed, device=device))
