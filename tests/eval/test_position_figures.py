"""Figures of position: what they choose to show, and that they are readable files, the same each time."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from franca.eval.figures.positions import (
    cluster_maps_figure,
    entropy_figure,
    frequency,
    most_placed,
    prediction_figure,
)
from franca.eval.protocols.position import fit_linear, grid_positions, score_positions
from franca.eval.protocols.position_entropy import PositionEntropy, position_entropy


def mixed(share: float, k: int = 12, images: int = 40) -> PositionEntropy:
    """Clusters on a grid of 4x6: one per pair of neighbouring cells, but ``share`` of the patches anywhere."""
    generator = torch.Generator().manual_seed(0)
    places = (torch.arange(24) // 2 % k).expand(images, 24)
    anywhere = torch.randint(k, (images, 24), generator=generator)
    draws = torch.rand(images, 24, generator=generator)
    return position_entropy(torch.where(draws < share, anywhere, places), 4, 6, k)


def features(strength: float, seed: int = 0, h: int = 4, w: int = 6) -> Tensor:
    noise = torch.randn(20, h, w, 8, generator=torch.Generator().manual_seed(seed))
    noise[..., :2] += strength * grid_positions(h, w).view(h, w, 2).float()
    return noise


def test_the_most_placed_clusters_are_shown_first() -> None:
    assignment = torch.randint(3, 9, (40, 24), generator=torch.Generator().manual_seed(0))
    assignment[:, :2] = 1  # a pair of cells
    assignment[:, 6:12] = 0  # a row
    assignment[:2, 23] = 2  # two patches at one place: the lowest entropy of all, and nothing to show
    found = position_entropy(assignment, 4, 6, 10)
    assert found.ratio[2] == 0
    assert most_placed(found, 2) == [1, 0]
    assert set(most_placed(found, 99)) == {0, 1, 3, 4, 5, 6, 7, 8}


def test_frequency_is_1_where_a_cluster_is_spread_evenly() -> None:
    shown = frequency(position_entropy(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]), 2, 2, 2), [1, 0])
    assert shown.shape == (2, 2, 2)
    assert shown.mean(axis=(1, 2)).tolist() == pytest.approx([1, 1])
    assert shown[0].tolist() == [[0, 0], [pytest.approx(4 / 3), pytest.approx(8 / 3)]]


def test_figures_are_readable_files_the_same_each_time(tmp_path) -> None:
    entropies = {"before": mixed(0.2), "after": mixed(0.9)}
    scores = {
        name: score_positions(fit_linear(features(strength)), features(strength, seed=1))
        for name, strength in {"before": 20.0, "after": 0.0}.items()
    }
    for folder in (tmp_path / "a", tmp_path / "b"):
        entropy_figure(folder / "entropy.png", entropies, "Title")
        cluster_maps_figure(folder / "maps.png", entropies, "Title", shown=5)
        prediction_figure(folder / "prediction.png", scores, "Title")
    assert len(list((tmp_path / "a").iterdir())) == 3
    for path in (tmp_path / "a").iterdir():
        with Image.open(path) as picture:
            assert picture.width >= 1000
            assert picture.convert("L").getextrema() != (255, 255)
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_what_is_drawn_depends_on_what_was_found(tmp_path) -> None:
    for name, share in (("placed", 0.1), ("mixed", 0.9)):
        entropy_figure(tmp_path / f"{name}.png", {"features": mixed(share)}, "Title")
        cluster_maps_figure(tmp_path / f"{name}-maps.png", {"features": mixed(share)}, "Title")
    assert (tmp_path / "placed.png").read_bytes() != (tmp_path / "mixed.png").read_bytes()
    assert (tmp_path / "placed-maps.png").read_bytes() != (tmp_path / "mixed-maps.png").read_bytes()


def test_small_cases_are_drawn(tmp_path) -> None:
    """One set of features, fewer clusters than places for maps, all clusters at one place, a grid of one row."""
    for k in (1, 2):
        entropy_figure(tmp_path / "entropy.png", {"only": mixed(0, k)}, "Title")
        cluster_maps_figure(tmp_path / "maps.png", {"only": mixed(0, k)}, "Title")
    row = score_positions(fit_linear(features(5.0, h=1)), features(5.0, seed=1, h=1))
    prediction_figure(tmp_path / "prediction.png", {"only": row}, "Title")
    assert len(list(tmp_path.iterdir())) == 3


def test_clusters_of_single_patches_are_refused(tmp_path) -> None:
    single = position_entropy(torch.arange(48), 4, 6, 48)
    for draw in (entropy_figure, cluster_maps_figure):
        with pytest.raises(ValueError, match="none of the 48 clusters of 'after' holds two patches"):
            draw(tmp_path / "figure.png", {"before": mixed(0), "after": single}, "Title")
    assert list(tmp_path.iterdir()) == []
