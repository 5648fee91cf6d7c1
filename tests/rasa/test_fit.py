"""Rounds: position that was planted is found and removed, the rest is left, and the planes are what they should be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.eval.protocols.position import grid_positions, position_error
from franca.eval.protocols.position_moments import Moments
from rasa import RasaError, fit_rasa, rasa_matrix
from rasa.fit import basis_of, head_of, run_rounds
from rasa.patches import CachedPatches
from rasa.solvers import ClosedFormSolver, GradientConfig, GradientSolver, Predictor, Solver

BARELY = 0.02  # R² of a predictor that finds nothing


def cached(features: Tensor) -> CachedPatches:
    """All patches, as the gradient solver gets them."""
    count, h, w, _ = features.shape
    cells = torch.arange(h * w).repeat(count, 1)
    return CachedPatches(features.flatten(1, 2).half(), cells, (h, w), torch.device("cpu"))


def moments(features: Tensor) -> Moments:
    sums = Moments.like(features)
    sums.add(features)
    return sums


def closed_form(features: Tensor) -> Solver:
    return ClosedFormSolver(moments(features[:-20]), moments(features[-20:]))


def gradient(features: Tensor) -> Solver:
    config = GradientConfig(lr=0.02, epochs=30, batch_size=8)
    return GradientSolver(cached(features[:-20]), cached(features[-20:]), config, seed=0)


SOLVERS = pytest.mark.parametrize("solver", [closed_form, gradient])


def curved(planted: Callable[..., Any], **options: Any) -> Tensor:
    """Features that hold position in three planes, bent differently in each."""
    one = planted(**options)
    side, width = one.features.shape[1], one.features.shape[3]
    directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))[0]
    offsets = (grid_positions(side, side).float() - 0.5).view(side, side, 2)
    bent = torch.sin(9 * offsets) @ directions[6:8] + offsets.pow(3) * 8 @ directions[8:10]
    return one.features + bent


@SOLVERS
def test_planted_position_is_found_and_removed(solver: Callable[..., Solver], planted: Callable[..., Any]) -> None:
    fit = run_rounds(solver(planted().features), rounds=4, saturation=0.01)
    other, another = planted(seed=1).features, planted(seed=2).features
    assert position_error(other, another).r2 > 0.8
    assert abs(position_error(fit.head(other), fit.head(another)).r2) < BARELY
    # the plane that was planted is the one that went first, and it is gone
    first = torch.linalg.qr(fit.rounds[0].weight.T)[0].float()
    cosines = torch.linalg.svdvals(planted().position @ first)
    assert cosines.min() > 0.98
    assert (planted().position @ rasa_matrix(fit.head).float()).norm(dim=1).max() < 0.15


@SOLVERS
def test_content_beside_position_survives(solver: Callable[..., Solver], planted: Callable[..., Any]) -> None:
    fit = run_rounds(solver(planted().features), rounds=1, saturation=0.01)
    other = planted(seed=1)
    before, after = ((features @ other.content.T).var() for features in (other.features, fit.head(other.features)))
    assert after > 0.98 * before


@SOLVERS
def test_every_plane_is_orthogonal_to_the_earlier_ones(
    solver: Callable[..., Solver], planted: Callable[..., Any]
) -> None:
    fit = run_rounds(solver(curved(planted)), rounds=4, saturation=0.0)
    assert len(fit.rounds) == 4
    planes = [torch.linalg.qr(one.weight.T)[0].T for one in fit.rounds]
    for number, plane in enumerate(planes):
        for earlier in planes[:number]:
            assert (plane @ earlier.T).abs().max() < 1e-6


def test_planes_are_orthogonal_even_if_the_predictors_are_not() -> None:
    class Stubborn:
        """Looks where it looked before, for the larger part."""

        width, doubt = 8, "None"

        def __call__(self, removed: Tensor, number: int) -> Predictor:
            draws = torch.Generator().manual_seed(number)
            weight = torch.eye(8, dtype=torch.float64)[:2] + 0.1 * torch.randn(2, 8, generator=draws).double()
            return Predictor(weight, 0.01, 0.01, 0.1)

    fit = run_rounds(Stubborn(), rounds=4, saturation=0.01)
    planes = torch.cat([torch.linalg.qr(one.weight.T)[0].T for one in fit.rounds])
    torch.testing.assert_close(planes @ planes.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)
    assert rasa_matrix(fit.head).abs().max() < 1e-5  # all eight directions are gone


@SOLVERS
def test_the_whole_map_is_a_projection_of_rank_d_minus_2t(
    solver: Callable[..., Solver], planted: Callable[..., Any]
) -> None:
    fit = run_rounds(solver(curved(planted)), rounds=4, saturation=0.0)
    matrix = rasa_matrix(fit.head)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix @ matrix, matrix, rtol=0, atol=1e-6)
    assert int((torch.linalg.eigvalsh(matrix) > 0.5).sum()) == len(matrix) - 2 * 4
    backwards = rasa_matrix(head_of([one.weight for one in reversed(fit.rounds)]))
    torch.testing.assert_close(matrix, backwards, rtol=0, atol=1e-6)


def test_rounds_remove_position_step_by_step(planted: Callable[..., Any]) -> None:
    """Position that is bent over several planes takes several rounds, and each leaves less of it."""
    fit = fit_rasa(curved(planted, images=400), rounds=8)
    shares = [one.predictable for one in fit.rounds]
    assert len(shares) > 2
    assert shares == sorted(shares, reverse=True)
    other, another = (curved(planted, seed=seed, images=400) for seed in (1, 2))
    left = [
        position_error(head(other), head(another)).r2
        for head in (head_of([one.weight for one in fit.rounds[:count]]) for count in range(1, len(shares) + 1))
    ]
    assert left == sorted(left, reverse=True)
    assert abs(left[-1]) < BARELY
    # what a round reported is what a fresh predictor on other images finds
    torch.testing.assert_close(torch.tensor(left[:-1]), torch.tensor(shares[1:]), rtol=0, atol=0.02)


def test_a_planted_plane_takes_one_round(planted: Callable[..., Any]) -> None:
    fit = fit_rasa(planted(images=200).features, rounds=8)
    assert len(fit.rounds) == 1
    assert "% of chance" in fit.stopped
    assert fit.head.n_pos_layers == 0


@SOLVERS
def test_features_without_position_are_refused(solver: Callable[..., Solver], planted: Callable[..., Any]) -> None:
    with pytest.raises(RasaError, match="no position was found to remove: the predictor's error on held-out images, 0"):
        run_rounds(solver(planted(strength=0.0).features), rounds=8, saturation=0.01)


@SOLVERS
def test_features_that_are_zero_are_refused(solver: Callable[..., Solver]) -> None:
    with pytest.raises(RasaError, match="no position was found to remove"):
        run_rounds(solver(torch.zeros(40, 4, 4, 8)), rounds=2, saturation=0.0)


def test_saturation_says_how_little_is_left(planted: Callable[..., Any]) -> None:
    features = curved(planted)
    made = {saturation: fit_rasa(features, rounds=4, saturation=saturation) for saturation in (0.0, 0.3)}
    assert made[0.0].stopped == "all 4 rounds were made"
    assert len(made[0.3].rounds) < 4
    assert all(one.predictable > 0.3 for one in made[0.3].rounds)
    assert f"on held-out images, {made[0.0].rounds[len(made[0.3].rounds)].held_out_error:.4f}" in made[0.3].stopped


def test_no_plane_of_noise_is_removed(planted: Callable[..., Any]) -> None:
    fit = fit_rasa(planted().features, rounds=8, saturation=0.0)
    assert len(fit.rounds) < 8
    assert all(one.held_out_error < one.chance for one in fit.rounds)


def test_no_more_planes_than_the_features_hold() -> None:
    torch.manual_seed(0)
    positions = grid_positions(4, 4).float().view(4, 4, 2)
    features = torch.cat([positions, positions**2, positions[..., :1] ** 3], dim=-1)  # width 5
    fit = fit_rasa(features + 0.01 * torch.randn(60, 4, 4, 5), rounds=8, saturation=0.0)
    assert len(fit.rounds) == 2
    assert fit.stopped == "nothing is left of the features"


def test_a_predictor_of_one_direction_ends_the_rounds() -> None:
    class Flat:
        """Predicts rows and columns by the same direction, as no plane does."""

        width, doubt = 6, "None"

        def __call__(self, removed: Tensor, number: int) -> Predictor:
            weight = torch.eye(6, dtype=torch.float64)[: 2 * number][-2:]
            return Predictor(weight if number == 1 else weight[:1].expand(2, -1), 0.01, 0.01, 0.1)

    fit = run_rounds(Flat(), rounds=3, saturation=0.01)
    assert len(fit.rounds) == 1
    assert "point the same way" in fit.stopped


def test_rounds_go_on_from_earlier_ones(planted: Callable[..., Any]) -> None:
    features = curved(planted)
    whole = run_rounds(closed_form(features), rounds=4, saturation=0.0)
    first = run_rounds(closed_form(features), rounds=2, saturation=0.0)
    heard: list[int] = []
    rest = run_rounds(
        closed_form(features),
        rounds=4,
        saturation=0.0,
        done=first.rounds,
        on_round=lambda made: heard.append(made.number),
    )
    assert heard == [3, 4]
    torch.testing.assert_close(rest.head.state_dict(), whole.head.state_dict(), rtol=0, atol=0)


def test_planes_of_earlier_rounds_are_one_basis(planted: Callable[..., Any]) -> None:
    fit = fit_rasa(curved(planted), rounds=3, saturation=0.0)
    basis = basis_of([one.weight for one in fit.rounds], fit.head.input_dim)
    eye = torch.eye(len(basis), dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, eye, rtol=0, atol=1e-12)
    matrix = torch.eye(fit.head.input_dim, dtype=torch.float64) - basis.T @ basis
    torch.testing.assert_close(rasa_matrix(fit.head), matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1000.0), (0.0, 1e-3), (1000.0, 1.0)])
def test_the_closed_form_knows_no_unit_and_no_origin(offset: float, scale: float, planted: Callable[..., Any]) -> None:
    """Far from zero, single precision itself costs some digits."""
    features = curved(planted)
    one, other = fit_rasa(features, rounds=2), fit_rasa(scale * features + offset, rounds=2)
    torch.testing.assert_close(rasa_matrix(one.head), rasa_matrix(other.head), rtol=0, atol=1e-3)
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        assert mine.held_out_error == pytest.approx(theirs.held_out_error, rel=1e-3)


def test_features_may_be_half_precision_and_of_any_grid() -> None:
    torch.manual_seed(0)
    offsets = (grid_positions(3, 7).float() - 0.5).view(3, 7, 2)
    features = (torch.cat([3 * offsets, torch.zeros(3, 7, 6)], dim=-1) + 0.3 * torch.randn(60, 3, 7, 8)).half()
    fit = fit_rasa(features)
    assert rasa_matrix(fit.head)[:2, :2].abs().max() < 0.05


def test_bad_features_are_refused(planted: Callable[..., Any]) -> None:
    features = planted(images=30).features
    broken = features.clone()
    broken[17, 2, 3, 4] = torch.nan
    with pytest.raises(RasaError, match=r"features of image 17 are not finite"):
        fit_rasa(broken)
    with pytest.raises(RasaError, match=r"shape \(30, 36, 24\); fit_rasa takes \(I, h, w, D\)"):
        fit_rasa(features.flatten(1, 2))
    with pytest.raises(RasaError, match=r"\(30, 1, 6, 24\).*h and w above 1"):
        fit_rasa(features[:, :1])
    with pytest.raises(RasaError, match=r"1 crops of 36 patches to fit 24 features on: give at least 3 \(four patches"):
        fit_rasa(features[:2])
    with pytest.raises(RasaError, match=r"held_out=1\.5"):
        fit_rasa(features, held_out=1.5)
