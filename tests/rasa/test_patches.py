"""What is kept of a pass: the same patches wherever they are kept, every patch as likely as another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from franca.data.random_streams import generator
from franca.eval.protocols.position import grid_positions
from rasa import RasaError
from rasa.backbones import Backbone
from rasa.crops import Crops, CropsConfig
from rasa.features import Engine
from rasa.patches import CacheConfig, CachedPatches, FreshPatches, collect, draw_patches

COUNT = 10


def colours(images: Tensor) -> Tensor:
    """Mean colour of every patch of 7 pixels: (B, 3, S, S) -> (B, 3, S / 7, S / 7)."""
    return avg_pool2d(images, 7)


@pytest.fixture
def kept(drawn_images: type[Any], tmp_path: Path) -> Callable[..., CachedPatches | FreshPatches]:
    """`kept(where, patches, model=…, broken=…)`: patches of ten crops with a grid of 4 x 4."""

    def collected(where: str, patches: int = 5, model: Any = colours, **images: Any) -> CachedPatches | FreshPatches:
        config = CropsConfig(size=28, batch_size=4, workers=0)
        crops = Crops(drawn_images(COUNT, **images), range(COUNT), config, seed=0)
        engine = Engine(Backbone(model), torch.device("cpu"), None)
        return collect(engine, crops, CacheConfig(where, patches=patches), tmp_path / "kept.bin", lambda _: None)

    return collected


def in_order(patches: CachedPatches | FreshPatches, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Features (V, P, D) and positions (V, P, 2) of an epoch, sorted by the first feature of each crop."""
    features, positions = (torch.cat(parts) for parts in zip(*patches.batches(3, epoch), strict=True))
    order = features[:, 0, 0].argsort()
    return features[order], positions[order]


def test_kept_and_fresh_patches_of_a_pass_are_the_same(kept: Callable[..., Any]) -> None:
    memory, disk, fresh = (in_order(kept(where)) for where in ("memory", "disk", "off"))
    assert isinstance(kept("off"), FreshPatches)
    for one, other in zip(memory, disk, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(memory[1], fresh[1], rtol=0, atol=0)
    torch.testing.assert_close(memory[0], fresh[0].half().float(), rtol=0, atol=0)


def test_later_epochs_shuffle_what_is_kept_and_crop_anew_what_is_not(kept: Callable[..., Any]) -> None:
    cached, fresh = kept("memory"), kept("off")
    torch.testing.assert_close(in_order(cached, 0)[0], in_order(cached, 1)[0], rtol=0, atol=0)
    orders = [torch.cat([features[:, 0, 0] for features, _ in cached.batches(3, epoch)]) for epoch in range(2)]
    assert not torch.equal(*orders)
    assert not torch.equal(in_order(fresh, 0)[0], in_order(fresh, 1)[0])


@pytest.mark.parametrize("where", ["memory", "off"])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 64])
def test_batches_have_the_size_that_was_asked_for(where: str, size: int, kept: Callable[..., Any]) -> None:
    """The steps of the schedule are counted from it."""
    patches = kept(where)
    counts = [len(features) for features, _ in patches.batches(size)]
    assert sum(counts) == COUNT
    assert counts[:-1] == [size] * (len(counts) - 1)
    assert len(counts) == patches.steps(size)


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
def test_features_lie_where_they_are_said_to(where: str, kept: Callable[..., Any]) -> None:
    def whereabouts(images: Tensor) -> Tensor:
        places = grid_positions(4, 4).float().T.reshape(1, 2, 4, 4)
        return places.expand(len(images), -1, -1, -1)

    patches = kept(where, model=whereabouts)
    assert patches.width == 2
    assert patches.chance == pytest.approx((grid_positions(4, 4) - 0.5).square().mean().item())
    for features, positions in patches.batches(4):
        torch.testing.assert_close(features, positions, rtol=0, atol=1e-3)


def test_zero_keeps_every_patch(kept: Callable[..., Any]) -> None:
    _, positions = in_order(kept("memory", patches=0))
    torch.testing.assert_close(positions, grid_positions(4, 4).float().expand(COUNT, -1, -1))
    assert CacheConfig(patches=256).kept(16) == 16


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
def test_unreadable_images_leave_no_gap(where: str, kept: Callable[..., Any]) -> None:
    whole, fewer = (in_order(kept(where, patches=0, broken=broken))[0] for broken in (set(), {3}))
    assert len(fewer) == COUNT - 1
    crops = [{crop.numpy().tobytes() for crop in features} for features in (fewer, whole)]
    assert crops[0] < crops[1]


def test_every_patch_is_as_likely_as_another() -> None:
    draws = generator("test", 0)
    grids = torch.arange(12.0).view(1, 3, 4, 1).expand(6000, -1, -1, -1)
    features, cells = draw_patches(grids, 5, draws)
    torch.testing.assert_close(features[..., 0], cells.float())
    assert (cells.diff(dim=1) > 0).all()  # none twice
    frequency = torch.bincount(cells.flatten(), minlength=12) / 6000
    torch.testing.assert_close(frequency, torch.full((12,), 5 / 12), rtol=0, atol=0.03)
    together = ((cells == 0).any(dim=1) & (cells == 1).any(dim=1)).float().mean().item()
    assert together == pytest.approx(5 / 12 * 4 / 11, abs=0.03)


def test_a_cache_on_disk_leaves_nothing_behind(kept: Callable[..., Any], tmp_path: Path) -> None:
    patches = kept("disk")
    assert isinstance(patches, CachedPatches)
    assert list(tmp_path.iterdir()) == []
    assert len(in_order(patches)[0]) == COUNT


def test_features_too_large_for_half_precision_are_refused_where_they_are_kept(kept: Callable[..., Any]) -> None:
    def huge(images: Tensor) -> Tensor:
        return 1e9 * colours(images)

    with pytest.raises(RasaError, match=r"features of up to .*e\+08, too large .*solver=closed_form, or cache\.where"):
        kept("memory", model=huge)
    assert isinstance(kept("off", model=huge), FreshPatches)


@pytest.mark.parametrize(
    ("where", "size", "free", "place"),
    [
        ("auto", 8e9, 0, "memory"),
        ("auto", 8e9 + 1, 100e9, "disk"),
        ("auto", 99.5e9, 100e9, "off"),  # a gigabyte stays free
        ("memory", 1e15, 0, "memory"),
        ("disk", 1, 100e9, "disk"),
        ("off", 1, 100e9, "off"),
    ],
)
def test_a_cache_goes_where_there_is_room(
    where: str, size: float, free: float, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert CacheConfig(where, memory_gb=8.0).place(int(size), tmp_path) == place


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e9))
    with pytest.raises(RasaError, match=r"cache\.where=disk needs 36\.0 GB .*cache\.patches=256 or data\.max_images"):
        CacheConfig("disk").place(int(36e9), tmp_path)


@pytest.mark.parametrize("changes", [{"where": "cloud"}, {"patches": -1}, {"memory_gb": -1.0}])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"cache\..*{next(iter(changes.values()))}"):
        CacheConfig(**changes)
