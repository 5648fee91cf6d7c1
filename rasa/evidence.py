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


@dataclass(frozen=True)
class State:
    """Measured on features as they are, before or after."""

    linear: PositionScore  # of a fresh linear predictor with an intercept
    sigmoid: PositionScore  # of a fresh predictor of the paper's form
    entropy: PositionEntropy


@dataclass(frozen=True)
class Evidence:
    """Both sides, on the same held-out crops. Predictors are fitted on other crops."""

    before: State
    after: State
    variance_removed: float  # share of the features' variance within what was removed
    fitted_on: int  # crops
    scored_on: int
    clusters: int
    features: Tensor  # (V, h, w, D) of held-out crops, fp16, as they were before

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
    """Full grids of patch features of at most `count` crops, (V, h, w, D) fp16 on the CPU."""
    batches = -(-count // crops.config.batch_size)
    grids = [batch.half().cpu() for batch in islice(engine.batches(crops), batches)]
    return torch.cat(grids)[:count]


def measure(fit: Tensor, held_out: Tensor, head: RASAHead, clusters: int, seed: int) -> Evidence:
    """Evidence from the features (V, h, w, D) of crops to fit predictors on and of held-out ones.

    Raises:
        RasaError: too few crops for a predictor of position.
    """
    matrix = rasa_matrix(head).float()
    k = clusters or max(2, min(held_out[..., 0].numel() // PATCHES_PER_CLUSTER, MOST_CLUSTERS))
    flat = held_out.flatten(0, 2).float()
    removed = flat - flat @ matrix
    try:
        before = _state(fit.float(), held_out.float(), k, seed)
        after = _state(fit.float() @ matrix, held_out.float() @ matrix, k, seed)
    except ValueError as error:
        raise RasaError(f"no evidence: {error}. More images, a higher data.views, or evidence.images=0") from error
    return Evidence(
        before=before,
        after=after,
        variance_removed=(removed.var(dim=0).sum() / flat.var(dim=0).sum()).item(),
        fitted_on=len(fit),
        scored_on=len(held_out),
        clusters=k,
        features=held_out,
    )


def _state(fit: Tensor, held_out: Tensor, k: int, seed: int) -> State:
    _, h, w, _ = held_out.shape
    return State(
        linear=position_error(fit, held_out),
        sigmoid=position_error(fit, held_out, "sigmoid"),
        entropy=position_entropy(kmeans(held_out.flatten(0, 2), k, seed=seed).assignment, h, w, k),
    )
