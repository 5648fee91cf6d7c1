"""Where does a patch lie? A fresh linear predictor of position, fitted on some images and scored on others.

Legend: I images, (h, w) patches in the grid of one image, N = h * w, D features per patch. Features are (I, h, w, D),
or (I, N, D) with ``grid`` = (h, w); fp16 and memory-mapped tensors do, since they are read in blocks of images. Sums
are in float64 and neither block size nor device changes a result beyond their rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK = 16  # images read at once
FLOOR = 1e-10  # of the mean second moment: a direction that varies less is rounding, or was removed, and is not used
MAX_ITERATIONS = 300


def grid_positions(h: int, w: int) -> Tensor:
    """(row, column) / (side - 1) of every patch, (h * w, 2) float64 in [0, 1], row first.

    A side of a single patch has no extent: its coordinate is 0.5.
    """
    if h < 1 or w < 1:
        raise ValueError(f"a grid of {h}x{w} patches: both sides must be above 0")
    rows, columns = (
        torch.arange(side, dtype=torch.float64) / (side - 1) if side > 1 else torch.tensor([0.5], dtype=torch.float64)
        for side in (h, w)
    )
    return torch.cartesian_prod(rows, columns)


def chance_mse(h: int, w: int) -> float:
    """Mean squared error, over patches and both coordinates, of always predicting the centre of the grid."""
    return (grid_positions(h, w) - 0.5).square().mean().item()


@dataclass(frozen=True)
class PositionPredictor:
    """Position of a patch from its features z: W z + b, or the sigmoid of that."""

    weight: Tensor  # (2, D), row first
    bias: Tensor  # (2,)
    sigmoid: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """Predicted row and column, (…, D) -> (…, 2), in the type and on the device of the weight."""
        predicted = features.to(self.weight) @ self.weight.T + self.bias
        return predicted.sigmoid() if self.sigmoid else predicted


@dataclass(frozen=True)
class PositionScore:
    """How far predicted positions lie from true ones; lengths in sides of the image (0 to 1 across).

    ``r2`` is 1 for a perfect prediction, 0 for one no better than chance, below 0 for a worse one. A coordinate that
    doesn't vary (a side of one patch) has an ``r2`` of NaN.
    """

    mse: float  # mean over patches and both coordinates; half of the paper's L_pos (Sec. 2.3), which adds the two
    rmse: float  # its root
    rmse_row: float
    rmse_column: float
    r2: float  # 1 - mse / chance_rmse^2; on a square grid the mean of the next two
    r2_row: float
    r2_column: float
    chance_rmse: float  # rmse of always predicting the mean position, (0.5, 0.5) on every grid
    predicted: Tensor  # (h, w, 2) float64: where the patches of each cell are put on average, on the CPU


def position_error(
    train_features: Tensor,
    test_features: Tensor,
    predictor: Literal["linear", "sigmoid"] = "linear",
    grid: tuple[int, int] | None = None,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> PositionScore:
    """Error on some images of a predictor that was fitted on others: what a linear map can tell about position.

    Args:
        train_features, test_features: of different images. Grids may differ, widths may not.
        predictor: "linear" is `fit_linear`, "sigmoid" is `fit_sigmoid`, the paper's.
        grid: (h, w) for features given as (I, N, D).
        block: images read at once; changes memory, no result.
        device: where to compute; None: where the features lie. It needs float64.

    Raises:
        ValueError: too few images, shapes that don't belong together, or NaN (the image is named by its number
            in the tensor given).
    """
    if predictor not in FITS:
        raise ValueError(f"predictor={predictor!r}: choose one of {', '.join(FITS)}")
    if train_features.shape[-1] != test_features.shape[-1]:
        raise ValueError(
            f"{train_features.shape[-1]} features per patch to fit on and {test_features.shape[-1]} to score: "
            "both must come from one model"
        )
    fitted = FITS[predictor](train_features, grid, block, device)
    return score_positions(fitted, test_features, grid, block, device)


@torch.no_grad()
def fit_linear(
    features: Tensor,
    grid: tuple[int, int] | None = None,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> PositionPredictor:
    """Least squares with an intercept, of least norm: in one pass over the features, which may have any rank."""
    h, w = _fit_shape(features, grid)
    device = device or features.device
    shift = features[0].to(device, torch.float64).flatten(0, -2).mean(dim=0)  # a large mean would cost digits below
    gram, cell_means = _moments(features, shift, h * w, block, device)
    offsets = grid_positions(h, w).to(device) - 0.5  # their mean is 0, so only the features need to be centred
    mean = cell_means.mean(dim=0)
    whiten = _whitening(gram - mean.outer(mean), FLOOR * gram.diagonal().mean())
    weight = (whiten @ (whiten.T @ (cell_means.T @ offsets / (h * w)))).T
    return PositionPredictor(weight, 0.5 - weight @ (mean + shift))


@torch.no_grad()
def fit_sigmoid(
    features: Tensor,
    grid: tuple[int, int] | None = None,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> PositionPredictor:
    """The paper's predictor sigmoid(W z), without a bias, by mean squared error (Sec. 2.3), fitted to convergence.

    L-BFGS over all patches from the least-squares solution of the sigmoid's tangent at 0, in coordinates that make
    the features white: no learning rate, no random state. Each step reads all features; about ten are usual.

    Raises:
        RuntimeError: not settled after 300 steps.
    """
    h, w = _fit_shape(features, grid)
    device = device or features.device
    positions = grid_positions(h, w).to(device)
    gram, cell_means = _moments(features, torch.zeros(features.shape[-1]), h * w, block, device)
    whiten = _whitening(gram, FLOOR * gram.diagonal().mean())
    tangent = 4 * whiten.T @ (cell_means.T @ (positions - 0.5) / (h * w))
    white = tangent.contiguous().requires_grad_()  # (directions, 2); W = (whiten white)^T

    @torch.no_grad()  # the optimiser turns gradients on
    def loss_and_slope() -> Tensor:
        weight = whiten @ white
        loss, slope = positions.new_zeros(()), torch.zeros_like(weight)
        for patches in _blocks(features, block, device):
            predicted = (patches @ weight).sigmoid()
            error = predicted - positions
            loss += error.square().sum()
            slope += patches.flatten(0, 1).T @ (2 * error * predicted * (1 - predicted)).flatten(0, 1)
        numbers = 2 * len(features) * h * w
        white.grad = (whiten.T @ slope).contiguous() / numbers
        return loss / numbers

    steps = _minimise(white, loss_and_slope) if white.numel() else 0
    if steps >= MAX_ITERATIONS:
        raise RuntimeError(f"the sigmoid predictor has not settled after {MAX_ITERATIONS} steps: give more images")
    weight = (whiten @ white.detach()).T
    return PositionPredictor(weight, weight.new_zeros(2), sigmoid=True)


FITS = {"linear": fit_linear, "sigmoid": fit_sigmoid}


@torch.no_grad()
def score_positions(
    predictor: PositionPredictor,
    features: Tensor,
    grid: tuple[int, int] | None = None,
    block: int = BLOCK,
    device: torch.device | str | None = None,
) -> PositionScore:
    """Error of a fitted predictor on the features of images, whichever way it was fitted."""
    h, w = _grid_of(features, grid)
    device = device or features.device
    if h * w < 2 or not len(features):
        raise ValueError(f"{len(features)} images of {h}x{w} patches: there is no position to tell")
    positions = grid_positions(h, w).to(device)
    weight, bias = (tensor.to(device, torch.float64) for tensor in (predictor.weight, predictor.bias))
    predictor = PositionPredictor(weight, bias, predictor.sigmoid)
    squares, sums = torch.zeros_like(positions), torch.zeros_like(positions)
    for patches in _blocks(features, block, device):
        predicted = predictor(patches)
        squares += (predicted - positions).square().sum(dim=0)
        sums += predicted.sum(dim=0)
    errors = squares.mean(dim=0) / len(features)
    return _score(errors, positions.var(dim=0, correction=0), (sums / len(features)).view(h, w, 2).cpu())


def _score(errors: Tensor, variances: Tensor, predicted: Tensor) -> PositionScore:
    """From the mean squared error and the variance of the position, per coordinate (2,)."""
    mse, chance = errors.mean().item(), variances.mean().item()
    row, column = errors.tolist()
    r2_row, r2_column = torch.where(variances > 0, 1 - errors / variances, torch.nan).tolist()
    return PositionScore(
        mse=mse, rmse=math.sqrt(mse), rmse_row=math.sqrt(row), rmse_column=math.sqrt(column),
        r2=1 - mse / chance, r2_row=r2_row, r2_column=r2_column, chance_rmse=math.sqrt(chance), predicted=predicted,
    )  # fmt: skip


def _moments(
    features: Tensor, shift: Tensor, cells: int, block: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Of z - shift: mean of z z^T over all patches (D, D), and mean of z per cell (N, D). Positions need no more."""
    width = features.shape[-1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    sums = torch.zeros(cells, width, dtype=torch.float64, device=device)
    shift = shift.to(sums)
    for patches in _blocks(features, block, device):
        shifted = patches - shift
        rows = shifted.flatten(0, 1)
        gram.addmm_(rows.T, rows)
        sums += shifted.sum(dim=0)
    return gram / (len(features) * cells), sums / len(features)


def _minimise(variable: Tensor, loss_and_slope: Callable[[], Tensor]) -> int:
    """Lower a loss to its minimum by L-BFGS; gives the number of steps."""
    optimizer = torch.optim.LBFGS(
        [variable],
        max_iter=MAX_ITERATIONS,
        max_eval=10 * MAX_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss_and_slope)
    return int(optimizer.state[variable]["n_iter"])


def _whitening(moment: Tensor, floor: Tensor) -> Tensor:
    """T (D, directions) with T^T moment T = 1, over the directions whose second moment is above ``floor``."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > floor
    return vectors[:, kept] / values[kept].sqrt()


def _blocks(features: Tensor, block: int, device: torch.device | str) -> Iterator[Tensor]:
    """(b, N, D) float64, a few images at a time; raises ValueError at the first one that is not finite."""
    for start in range(0, len(features), block):
        patches = features[start : start + block].to(device, torch.float64)
        patches = patches.flatten(1, 2) if patches.ndim == 4 else patches
        if not patches.isfinite().all():
            image = start + int(patches.isfinite().all(dim=2).all(dim=1).int().argmin())
            raise ValueError(
                f"features of image {image} are NaN or infinite: look at the model's output for it, "
                "and at the type it computes in"
            )
        yield patches


def _fit_shape(features: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid, when there are patches enough for a determined fit."""
    h, w = _grid_of(features, grid)
    needed = max(2, features.shape[-1] // (h * w) + 1)
    if len(features) < needed:
        raise ValueError(
            f"{len(features)} images of {h}x{w} patches to fit {features.shape[-1]} features per patch on: "
            f"give at least {needed}, so that patches outnumber features"
        )
    return h, w


def _grid_of(features: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(h, w) of features of either form."""
    shape = tuple(features.shape)
    if len(shape) == 4 and grid in (None, shape[1:3]):
        return shape[1], shape[2]
    if len(shape) == 3 and grid is not None and grid[0] * grid[1] == shape[1]:
        return grid
    raise ValueError(f"features of shape {shape} with grid={grid}: give (I, h, w, D), or (I, h * w, D) and grid=(h, w)")
