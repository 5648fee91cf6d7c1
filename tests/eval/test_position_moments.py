"""Sums over patches tell exactly what all the patches tell, whatever they are shifted by and however they come."""

import pytest
import torch
from torch import Tensor

from franca.eval.protocols.position import grid_positions
from franca.eval.protocols.position_moments import Moments


def features_that_know_their_place(mean: float = 0.0, crops: int = 30) -> Tensor:
    """(V, 4, 5, 6), correlated with one another and with the position."""
    draws = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=draws)
    of_cells = torch.randn(4, 5, 6, generator=draws)
    return mean + (torch.randn(crops, 4, 5, 6, generator=draws) + of_cells) @ mix


def in_blocks(features: Tensor, *sizes: int) -> Moments:
    sums = Moments.like(features[: sizes[0]])
    for block in features.split(list(sizes)):
        sums.add(block)
    return sums


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_blocks_give_what_all_rows_give(mean: float) -> None:
    features = features_that_know_their_place(mean)
    sums = in_blocks(features, 7, 16, 7)
    rows = features.double().flatten(0, 2)
    positions = grid_positions(4, 5).repeat(len(features), 1)
    centred, offsets = rows - rows.mean(dim=0), positions - positions.mean(dim=0)
    exact = {"rtol": 1e-4, "atol": 1e-4}  # single precision of the features themselves
    torch.testing.assert_close(sums.mean, rows.mean(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sums.covariance, centred.T @ centred / len(rows), **exact)
    torch.testing.assert_close(sums.covariance_with_position, centred.T @ offsets / len(rows), **exact)
    assert sums.chance == pytest.approx(offsets.square().mean().item())
    assert sums.crops == len(features)


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_error_is_the_mean_over_patches_and_both_coordinates(mean: float) -> None:
    features = features_that_know_their_place(mean)
    sums = in_blocks(features, 15, 15)
    torch.manual_seed(1)
    weight, bias = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    predicted = features.double().flatten(0, 2) @ weight + bias
    directly = (predicted - grid_positions(4, 5).repeat(len(features), 1)).square().mean().item()
    assert sums.error(weight, bias) == pytest.approx(directly, rel=1e-4)


def test_the_shift_changes_nothing_that_follows() -> None:
    features = features_that_know_their_place(3.0)
    sums = in_blocks(features, 30)
    other = Moments.like(features)
    other.shift = other.shift + torch.linspace(-2, 2, 6, dtype=torch.float64)
    other.add(features)
    torch.testing.assert_close(other.mean, sums.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.covariance, sums.covariance, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.covariance_with_position, sums.covariance_with_position, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    weight, bias = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    assert other.error(weight, bias) == pytest.approx(sums.error(weight, bias), rel=1e-4)


def test_the_type_of_the_features_does_not_bend_the_shift() -> None:
    """What is noted as the shift is what was taken out, to the last digit."""
    features = features_that_know_their_place(1e3).double() + 1e-5
    sums = in_blocks(features, 30)
    singles = features.float().double().flatten(0, 2)
    torch.testing.assert_close(sums.mean, singles.mean(dim=0), rtol=1e-9, atol=1e-6)
