"""RASA's rounds: find the plane that predicts position, remove it, look again (paper Sec. 2.3).

Every round's plane is made orthogonal to those before it, so that T rounds remove exactly a subspace of 2 T dimensions,
in whatever order: the published heads, trained one after the other without that, still evaluate as published.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from franca.eval.protocols.position_moments import Moments
from franca.models import RASAHead
from franca.models.rasa_head import plane_basis
from rasa.errors import RasaError
from rasa.solvers import ClosedFormSolver, Solver


@dataclass(frozen=True)
class Round:
    """One plane. Errors are mean squared, over patches and both coordinates (half of the paper's L_pos)."""

    number: int
    weight: Tensor  # (2, D) float64
    train_error: float
    held_out_error: float
    chance: float  # error of always predicting the centre
    seconds: float

    @property
    def predictable(self) -> float:
        """Share of the position's variance that was still predicted on held-out images before this plane went."""
        return 1 - self.held_out_error / self.chance


@dataclass(frozen=True)
class RASAFit:
    """What `fit_rasa` found."""

    head: RASAHead
    rounds: list[Round]
    stopped: str  # why no further round was made


def fit_rasa(
    features: Tensor,
    rounds: int = 8,
    saturation: float = 0.01,
    held_out: float = 0.1,
) -> RASAFit:
    """A RASA head for patch features that are there already, by the closed-form solver.

    Args:
        features: (I, h, w, D) of different images, I * h * w well above D; shuffled if their order means anything.
        rounds: most planes to remove.
        saturation: stop when the held-out error is within this share of chance.
        held_out: share of the images, from the end, on which errors are measured.

    Raises:
        RasaError: other shapes, too few images, values that are not finite, or no position to be found.
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"features are a {type(features).__name__}; fit_rasa takes a torch tensor (I, h, w, D)")
    if features.ndim != 4 or min(features.shape[1:3]) < 2:
        raise RasaError(f"features of shape {tuple(features.shape)}; fit_rasa takes (I, h, w, D), h and w above 1")
    if not 0 < held_out < 1:
        raise RasaError(f"held_out={held_out}: choose a share of the images above 0 and below 1")
    last = max(round(held_out * len(features)), 1)
    check_size(len(features) - last, features.shape[1] * features.shape[2], features.shape[3])
    if not features.isfinite().all():
        image = int(features.isfinite().flatten(1).all(dim=1).int().argmin())
        raise RasaError(
            f"features of image {image} are not finite (NaN or infinite): look at the model's output for it"
        )
    moments = []
    for part in (features[:-last], features[-last:]):
        moments.append(Moments.like(part[:32]))  # a shift near the mean
        for block in part.split(32):
            moments[-1].add(block.float())
    return run_rounds(ClosedFormSolver(*moments), rounds, saturation)


def check_size(crops: int, patches: int, width: int) -> None:
    """Raise RasaError when there are too few patches to tell a position from chance."""
    needed = -(-4 * width // patches)
    if crops < max(needed, 2):
        raise RasaError(
            f"{crops} crops of {patches} patches to fit {width} features on: give at least {max(needed, 2)} "
            "(four patches for each feature), by more images or a higher data.views"
        )


def run_rounds(
    solver: Solver,
    rounds: int,
    saturation: float,
    done: Sequence[Round] = (),
    on_round: Callable[[Round], None] = lambda _: None,
) -> RASAFit:
    """Fit and remove planes until position is no longer predicted, or `rounds` are made.

    Args:
        solver: fits a predictor to what is left.
        saturation: stop when the held-out error is within this share of chance; 0: when it is no better than chance,
            whose plane would be one of noise.
        done: rounds made earlier, to go on from.
        on_round: called after each new round.

    Raises:
        RasaError: the very first predictor does no better than chance, or gives no plane.
    """
    made = list(done)
    removed = basis_of([one.weight for one in made], solver.width)
    stopped = f"all {rounds} rounds were made"
    while len(made) < rounds:
        number = len(made) + 1
        if 2 * number > solver.width:
            stopped = "nothing is left of the features"
            break
        started = time.perf_counter()
        predictor = solver(removed, number)
        if predictor.held_out_error >= (1 - saturation) * predictor.chance:
            stopped = (
                f"the predictor's error on held-out images, {predictor.held_out_error:.4f}, came within "
                f"{saturation:.0%} of chance, {predictor.chance:.4f}"
            )
            break
        weight = beyond(removed, predictor.weight)
        plane = plane_basis(weight)
        if not plane.any(dim=1).all():
            stopped = "the predictor of rows and that of columns point the same way: no plane"
            break
        removed = torch.cat([removed, plane])
        made.append(
            Round(
                number, weight, predictor.train_error, predictor.held_out_error, predictor.chance,
                time.perf_counter() - started,
            )
        )  # fmt: skip
        on_round(made[-1])
    if not made:
        raise RasaError(
            f"no position was found to remove: {stopped}. Are these patch features of the last block, and not already "
            f"debiased? {solver.doubt}"
        )
    return RASAFit(head_of([one.weight for one in made]), made, stopped)


def basis_of(weights: Sequence[Tensor], width: int) -> Tensor:
    """Orthonormal basis of all planes together, [(2, D)] -> (2 T, D) float64."""
    basis = torch.empty(0, width, dtype=torch.float64)
    for weight in weights:
        basis = torch.cat([basis, plane_basis(beyond(basis, weight.double()))])
    return basis


def beyond(basis: Tensor, weight: Tensor) -> Tensor:
    """What of a weight (2, D) lies outside the span of an orthonormal basis (k, D)."""
    return weight - (weight @ basis.T) @ basis


def head_of(weights: Sequence[Tensor]) -> RASAHead:
    """A head that removes these planes (2, D) in their order."""
    head = RASAHead(weights[0].shape[1], len(weights) - 1)
    with torch.no_grad():
        for layer, weight in zip([*head.pre_pos_layers, head.pos_pred], weights, strict=True):
            layer.weight.copy_(weight)
    return head.eval().requires_grad_(False)
