"""Proportions of a mixture, and its configuration."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from franca.data.config import DataConfig, PartConfig
from franca.data.errors import DataError
from franca.data.mixture import SLOTS, Mixture, describe
from franca.data.sources.shards import Shards


class Images:
    """So many images."""

    classes: list[str] = []
    labels: list[int] | None = None

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> Tensor:
        return torch.zeros(3, 8, 8, dtype=torch.uint8)


def _mixture(*weights: float) -> Mixture:
    return Mixture([Images(10) for _ in weights], weights)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.2, 0.3, 0.5], [1_281_167, 20_210, 118_287, 7_481, 17_125]])
def test_shares_are_exact_over_a_turn_and_close_in_any_stretch(weights: list[float]) -> None:
    mixture = _mixture(*weights)
    shares = [weight / sum(weights) for weight in weights]
    assert int(mixture.quotas.sum()) == SLOTS
    assert all(abs(quota - share * SLOTS) <= 1 for quota, share in zip(mixture.quotas, shares, strict=True))
    stretch = 3000
    counts = Counter(mixture.deal(0, sample)[0] for sample in range(SLOTS - stretch // 2, SLOTS + stretch // 2))
    for part, share in enumerate(shares):
        assert abs(counts[part] - share * stretch) < 5 * (stretch * share * (1 - share)) ** 0.5 + 1


def test_a_part_of_nearly_nothing_is_there() -> None:
    assert _mixture(1.0, 1e-9).quotas.tolist() == [SLOTS - 1, 1]


def test_every_number_of_a_part_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca.data.mixture.SLOTS", 64)
    mixture = _mixture(0.6, 0.4)
    dealt = [mixture.deal(3, sample) for sample in range(3 * 64)]
    assert sorted(dealt) == [(0, n) for n in range(3 * 38)] + [(1, n) for n in range(3 * 26)]


def test_the_order_is_a_function_of_the_seed() -> None:
    mixture = _mixture(1, 1)
    first, again, other = ([mixture.deal(seed, sample) for sample in range(200)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_one_part_is_left_as_it_is() -> None:
    assert [_mixture(5.0).deal(0, sample) for sample in (0, 7, 10**12)] == [(0, 0), (0, 7), (0, 10**12)]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_make_no_shares(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="number above 0"):
        _mixture(*weights)


class TestConfig:
    def test_without_weights_every_image_counts_the_same(self, images: Path) -> None:
        parts = [PartConfig("folder", str(images)), PartConfig("photographs", "train")]
        mixture = DataConfig(source="mixture", parts=parts).build()
        assert isinstance(mixture, Mixture)
        lengths = [20, len(DataConfig(source="photographs").build_source())]
        assert mixture.quotas[0] / SLOTS == pytest.approx(lengths[0] / sum(lengths), abs=1e-4)
        assert describe(mixture) == f"mixture of 12.19% 20 images, 87.81% {lengths[1]} images"

    def test_parts_are_read_as_types(self) -> None:
        written = (
            "source: mixture\nparts:\n- {path: /a, weight: 2}\n- {source: shards, path: '/b/{0..9}.tar', weight: 1}"
        )
        read = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.create(written))
        config = OmegaConf.to_object(read)
        assert isinstance(config, DataConfig)
        assert config.parts == [PartConfig("folder", "/a", 2.0), PartConfig("shards", "/b/{0..9}.tar", 1.0)]
        assert OmegaConf.to_object(OmegaConf.structured(config)) == config

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"source": "mixture"}, r"data\.source='mixture' with 0 data\.parts"),
            ({"parts": [PartConfig()]}, r"data\.source='folder' with 1 data\.parts"),
            ({"source": "mixture", "parts": [PartConfig(weight=1.0), PartConfig()]}, "every part a weight, or none"),
            ({"source": "mixture", "parts": [PartConfig("shards")]}, "nobody has counted"),
        ],
    )
    def test_parts_that_make_no_mixture(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DataConfig(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"source": "tar"}, r"source='tar'.*tars"), ({"path": "/a", "weight": -1.0}, r"weight=-1\.0 of '/a'")],
    )
    def test_bad_parts_are_named(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PartConfig(**options)

    def test_who_needs_numbers_is_told_that_there_are_none(self) -> None:
        with pytest.raises(DataError, match=r"data\.source='shards' is for training alone.*folder"):
            DataConfig(source="shards", path="/a/{0..9}.tar").build_source()


def test_shards_describe_themselves(make_shards) -> None:  # type: ignore[no-untyped-def]
    assert describe(Shards(str(make_shards(3, 2)))) == "3 shards in 3 streams"
