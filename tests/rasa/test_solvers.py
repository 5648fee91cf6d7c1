"""Both ways to a predictor: least squares is least squares, and the paper's loop is the paper's loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.eval.protocols import position_moments
from franca.eval.protocols.position import fit_linear, grid_positions, position_error
from franca.eval.protocols.position_moments import Moments
from franca.models.rasa_head import plane_basis
from rasa import RasaError
from rasa.patches import CachedPatches
from rasa.solvers import ClosedFormSolver, GradientConfig, GradientSolver, Predictor

NOTHING = torch.empty(0, 24, dtype=torch.float64)
SOME = torch.linalg.qr(torch.randn(24, 4, generator=torch.Generator().manual_seed(5)).double())[0].T


def projected(features: Tensor, removed: Tensor) -> Tensor:
    return features - (features @ removed.T.float()) @ removed.float()


def closed_form(features: Tensor, held_out: Tensor) -> ClosedFormSolver:
    parts = []
    for part in (features, held_out):
        parts.append(Moments.like(part))
        parts[-1].add(part)
    return ClosedFormSolver(*parts)


def cached(features: Tensor) -> CachedPatches:
    count, h, w, _ = features.shape
    return CachedPatches(
        features.flatten(1, 2).half(), torch.arange(h * w).repeat(count, 1), (h, w), torch.device("cpu")
    )


def gradient(features: Tensor, **options: Any) -> GradientSolver:
    config = GradientConfig(**{"lr": 0.02, "epochs": 3, "batch_size": 8} | options)
    return GradientSolver(cached(features[:-20]), cached(features[-20:]), config, seed=3)


def test_target_and_error_equal_the_reference(parity_dir: Path) -> None:
    """Rows come first, and the error is the mean over both coordinates: half of the paper's."""
    with np.load(parity_dir / "rasa.npz") as file:
        target, predicted = torch.from_numpy(file["train/target"]), torch.from_numpy(file["head/pos_prediction"])
        mse, paper = float(file["train/mse"]), float(file["train/paper_Lpos"])
    side = round(target.shape[1] ** 0.5)
    positions = grid_positions(side, side).float()
    torch.testing.assert_close(positions.expand_as(target), target, rtol=0, atol=1e-7)
    assert (predicted - positions).square().mean().item() == pytest.approx(mse, rel=1e-6)
    assert paper == pytest.approx(2 * mse, rel=1e-6)


@pytest.mark.parametrize("removed", [NOTHING, SOME], ids=["first", "later"])
class TestClosedForm:
    def test_it_is_least_squares_on_what_is_left(self, removed: Tensor, planted: Callable[..., Any]) -> None:
        features = planted().features
        found = closed_form(features, features)(removed, 1)  # scored on what it was fitted on: the least ridge wins
        directly = fit_linear(projected(features, removed))
        torch.testing.assert_close(found.weight, 4 * directly.weight, rtol=0, atol=1e-3)
        error = position_error(projected(features, removed), projected(features, removed)).mse
        assert found.train_error == found.held_out_error == pytest.approx(error, rel=1e-5)
        assert (found.weight @ removed.T).abs().sum() < 1e-9

    def test_errors_are_those_of_the_features(self, removed: Tensor, planted: Callable[..., Any]) -> None:
        features, other = planted().features, planted(seed=1).features
        found = closed_form(features, other)(removed, 1)
        weight = found.weight / 4
        for part, told in ((features, found.train_error), (other, found.held_out_error)):
            predicted = (part.double() - features.double().mean(dim=(0, 1, 2))) @ weight.T + 0.5
            error = (predicted.flatten(1, 2) - grid_positions(6, 6)).square().mean().item()
            assert told == pytest.approx(error, rel=1e-4)
        assert found.chance == pytest.approx((grid_positions(6, 6) - 0.5).square().mean().item())

    def test_the_ridge_is_the_best_on_held_out_crops(self, removed: Tensor, planted: Callable[..., Any]) -> None:
        parts = [planted(images=images, seed=seed, strength=0.4).features for images, seed in ((3, 0), (120, 1))]
        solver = closed_form(*parts)
        errors = [solver.fit.ridge(solver.held_out, removed, [one]).validation_error for one in position_moments.RIDGES]
        assert solver(removed, 1).held_out_error == min(errors) < errors[0]


def paper_loop(features: Tensor, held_out: Tensor, config: GradientConfig, seed: int, number: int) -> Tensor:
    """The original's training of one predictor on the features as given, by Appendix B; its weight."""
    patches = cached(features)
    patches.features = features.flatten(1, 2)  # not rounded again
    scale = held_out.half().float().square().mean().sqrt()
    torch.manual_seed(seed * 1000 + number)
    weight = ((2 * torch.rand(2, features.shape[-1]) - 1) / features.shape[-1] ** 0.5).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=config.lr, weight_decay=0)
    steps = config.epochs * patches.steps(config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(config.epochs):
        for batch, positions in patches.batches(config.batch_size, (number - 1) * config.epochs + epoch):
            loss = ((batch / scale @ weight.T).sigmoid() - positions).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weight.detach()


@pytest.mark.parametrize(("removed", "number"), [(NOTHING, 1), (SOME, 3)], ids=["first", "later"])
def test_projected_weights_train_as_projected_features_do(
    removed: Tensor, number: int, planted: Callable[..., Any]
) -> None:
    features = planted().features.half().float()
    solver = gradient(features)
    found = solver(removed, number)
    left = projected(features, removed)
    weight = paper_loop(left[:-20], features[-20:], solver.config, solver.seed, number)
    expected = projected(weight, removed) / solver.scale
    torch.testing.assert_close(found.weight.float(), expected, rtol=0, atol=1e-5)
    assert (found.weight @ removed.T).abs().sum() < 1e-6


def test_errors_of_the_gradient_solver_are_those_of_its_sigmoid(planted: Callable[..., Any]) -> None:
    features = planted().features
    found = gradient(features)(NOTHING, 1)
    predicted = (features[-20:].half().double() @ found.weight.T).sigmoid()
    error = (predicted.flatten(1, 2) - grid_positions(6, 6)).square().mean().item()
    assert found.held_out_error == pytest.approx(error, rel=1e-4)
    assert found.train_error < found.chance


def test_the_gradient_solver_knows_no_unit(planted: Callable[..., Any]) -> None:
    features = planted().features
    plain, large = (plane_basis(gradient(scale * features)(NOTHING, 1).weight) for scale in (1.0, 1000.0))
    torch.testing.assert_close(plain.T @ plain, large.T @ large, rtol=0, atol=1e-3)


def test_a_run_of_the_gradient_solver_repeats_itself_and_rounds_differ(planted: Callable[..., Any]) -> None:
    features = planted().features
    one, same, other = (gradient(features)(NOTHING, number).weight for number in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("lr", [1e4, 1e20])
def test_a_saturated_predictor_names_the_learning_rate(lr: float, planted: Callable[..., Any]) -> None:
    with pytest.raises(RasaError, match=r"predictor is saturated: .*Lower gradient\.lr=1.*solver=closed_form"):
        gradient(planted().features, lr=lr)(NOTHING, 1)


@pytest.mark.parametrize("name", ["lr", "epochs", "batch_size"])
def test_numbers_that_train_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"gradient\.{name}=0 must be above 0"):
        GradientConfig(**{name: 0})


def test_both_solvers_find_the_same_plane(planted: Callable[..., Any]) -> None:
    features = planted().features
    found: list[Predictor] = [
        closed_form(features[:-20], features[-20:])(NOTHING, 1),
        gradient(features, epochs=40)(NOTHING, 1),
    ]
    cosines = torch.linalg.svdvals(plane_basis(found[0].weight) @ plane_basis(found[1].weight).T)
    assert cosines.min() > 0.98
