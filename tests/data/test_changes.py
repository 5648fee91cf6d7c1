import math

import pytest
import torch
from torch import Tensor

from franca.data import changes
from franca.data.changes import (
    BLACK,
    DRAWS,
    FLIP,
    GREY,
    GREYSCALE,
    JITTER,
    MEAN,
    SIGMA,
    SLOTS,
    SOLARIZE,
    TURN,
    draw_changes,
)

COUNT = 6000


def _rows(flip: float = 0, jitter: float = 0, grey: float = 0, blur: float = 0, solarize: float = 0) -> Tensor:
    draws = torch.rand(COUNT, DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw_changes(draws, torch.tensor([flip, jitter, grey, blur, solarize]))


def _shares(rows: Tensor) -> Tensor:
    """(N, SLOTS, 3)"""
    return rows[:, : 3 * SLOTS].unflatten(1, (SLOTS, 3))


def test_no_chance_means_no_change() -> None:
    assert not _rows().any()


@pytest.mark.parametrize("chance", [0.1, 0.5, 1.0])
def test_every_change_has_its_own_chance(chance: float) -> None:
    rows = _rows(*[chance] * 5)
    happened = torch.stack([rows[:, JITTER].any(1), *(rows[:, [FLIP, GREYSCALE, SIGMA, SOLARIZE]] != 0).T])
    shares = happened.float().mean(1)
    assert shares.tolist() == pytest.approx([chance] * 5, abs=0.02)
    if chance < 1:
        assert (torch.corrcoef(happened.float()) - torch.eye(5)).abs().max() < 0.05


def test_flip_greyscale_and_solarize_are_whole_or_not_at_all() -> None:
    assert set(_rows(*[0.5] * 5)[:, [FLIP, GREYSCALE, SOLARIZE]].unique().tolist()) == {0.0, 1.0}


def test_chances_of_each_crop_are_its_own() -> None:
    draws = torch.rand(2, COUNT, DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = draw_changes(draws, torch.tensor([[0.0] * 5, [1.0] * 5])[:, None])
    assert not rows[0].any()
    assert rows[1, :, FLIP].all()


def test_strengths_are_uniform_in_the_recipes_ranges() -> None:
    """Brightness and contrast 0.4, saturation 0.2, hue 0.1 (DINOv2), as factors 1 - mixed share; sigma 0.1 to 2."""
    rows = _rows(jitter=1, blur=1)
    mixed = _shares(rows).sum(1)  # each change stands in one slot and is 0 in the others
    ranges = {BLACK: (0.6, 1.4), MEAN: (0.6, 1.4), GREY: (0.8, 1.2)}
    found = {column: 1 - mixed[:, column] for column in ranges}
    found |= {TURN: rows[:, TURN], SIGMA: rows[:, SIGMA]}
    for column, (low, high) in (ranges | {TURN: (-0.1, 0.1), SIGMA: (0.1, 2.0)}).items():
        values = found[column].double()
        width = high - low
        assert low - 1e-6 <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-6
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * width)
        assert float(values.std()) == pytest.approx(width / math.sqrt(12), rel=0.03)
    correlation = torch.corrcoef(torch.stack(list(found.values())))
    assert (correlation - torch.eye(len(found))).abs().max() < 0.05


def test_every_order_of_the_jitter_is_as_likely() -> None:
    shares = _shares(_rows(jitter=1)) != 0
    assert (shares.sum(2) <= 1).all()  # one change a slot
    assert (shares.sum(1) == 1).all()  # and each once
    slots = shares.int().argmax(1)  # (N, 3)
    hue = torch.full((COUNT, 1), SLOTS / 2 - 0.5)
    orders, counts = torch.cat([slots, hue], dim=1).argsort(1).unique(dim=0, return_counts=True)
    assert len(orders) == math.factorial(4)
    assert (counts / COUNT * 24 - 1).abs().max() < 0.25


def test_a_row_is_a_function_of_its_draws() -> None:
    draws = torch.rand(7, 3, DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chances = torch.full((5,), 0.5)
    together = draw_changes(draws, chances)
    assert together.shape == (7, 3, changes.COLUMNS)
    assert together.dtype == torch.float32
    assert torch.equal(
        torch.stack([draw_changes(each, chances) for each in draws.flatten(0, 1)]), together.flatten(0, 1)
    )
