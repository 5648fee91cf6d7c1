import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from franca.data.batch import Crops, LoadedBatch, PretrainBatch, Sample, SkippedFile, collate, draw_masks
from franca.data.masking import MaskConfig
from franca.data.multi_crop import CropConfig, MultiCrop
from franca.data.photometric import finish


def _samples(count: int, n_local: int = 2) -> list[Sample]:
    """Crops whose value says whose they are: 100 * image + place, local ones negative."""
    return [
        Sample(
            Crops(
                global_=[torch.full((3, 4, 4), 100.0 * i + place) for place in range(2)],
                local=[torch.full((3, 2, 2), -100.0 * i - place) for place in range(n_local)],
            ),
            number=10 + i,
            skipped=[SkippedFile(f"broken{i}", "why")] if i == 1 else [],
        )
        for i in range(count)
    ]


def _collate(count: int = 4, grid: tuple[int, int] = (6, 6), seed: int = 0, n_local: int = 2, **mask) -> PretrainBatch:
    config = MaskConfig(**mask)
    return collate(_samples(count, n_local), config.build(grid), config, torch.Generator().manual_seed(seed))


def _check_masks(batch: PretrainBatch) -> None:
    """What holds for every batch."""
    places = batch.masks.flatten().nonzero().squeeze(1)
    real = len(places)
    assert torch.equal(batch.mask_valid, torch.arange(len(batch.mask_indices)) < real)
    assert torch.equal(batch.mask_indices[:real], places)
    assert not batch.mask_indices[real:].any()
    assert not batch.mask_weights[real:].any()
    own_count = batch.masks.sum(1)[places // batch.masks.shape[1]]
    torch.testing.assert_close(batch.mask_weights[:real], 1.0 / own_count)


def test_crops_are_crop_major() -> None:
    batch = _collate(3)
    assert batch.global_crops[:, 0, 0, 0].tolist() == [0, 100, 200, 1, 101, 201]
    assert batch.local_crops is not None
    assert batch.local_crops[:, 0, 0, 0].tolist() == [0, -100, -200, -1, -101, -201]
    assert batch.n_images == 3
    assert batch.sample_numbers == [10, 11, 12]
    assert batch.skipped == [SkippedFile("broken1", "why")]


def test_no_local_crops() -> None:
    assert _collate(n_local=0).local_crops is None


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["cyclic", "inverse_block", "block", "random"])
def test_masks_indices_and_weights_agree(kind: str, probability: float) -> None:
    batch = _collate(5, kind=kind, probability=probability)
    _check_masks(batch)
    assert int((batch.masks.sum(1) > 0).sum()) == int(10 * probability)


def test_shapes_do_not_depend_on_the_draw() -> None:
    batches = [_collate(seed=seed) for seed in range(20)]
    assert len({len(batch.mask_indices) for batch in batches}) == 1
    assert len({int(batch.mask_valid.sum()) for batch in batches}) > 1


def test_masks_are_dealt_to_all_crops() -> None:
    """Over many batches every crop is masked in half of them, and by no stratum of its own."""
    config = MaskConfig()
    mask, generator = config.build((6, 6)), torch.Generator().manual_seed(0)
    counts = torch.stack([draw_masks(8, mask, config, generator)[0].sum(1) for _ in range(2000)]).float()
    assert ((counts > 0).float().mean(0) - 0.5).abs().max() < 0.05
    means = counts.sum(0) / (counts > 0).sum(0)
    assert (means - means.mean()).abs().max() < 1


def test_ratios_fill_every_stratum() -> None:
    config = MaskConfig(probability=1.0, ratio=[0.0, 1.0])
    mask, generator = config.build((10, 10)), torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = draw_masks(10, mask, config, generator)[0].sum(1).sort().values
        lower = torch.arange(0, 100, 10)
        assert ((counts >= lower) & (counts <= lower + 10)).all()


def test_every_tensor_moves_to_the_device() -> None:
    batch = _collate()
    moved = batch.to("meta")
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta", name
        else:
            assert getattr(moved, name) == value, name


def _loaded() -> LoadedBatch:
    """Two images, two local crops each, to be changed in every way."""
    config = CropConfig(global_size=12, local_size=8, local_count=2, flip=1, grayscale=1, solarize=1)
    multi, random, mask = MultiCrop(config), torch.Generator().manual_seed(0), MaskConfig()
    images = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    crops = [multi(image, random) for image in images]
    samples = [Sample(each, number) for number, each in enumerate(crops)]
    return LoadedBatch(collate(samples, mask.build((2, 2)), mask, random), multi.changes_of(crops), multi.norm)


def test_a_loaded_batch_is_finished_where_it_goes() -> None:
    """Each crop by the row of its own place and image, and nothing but the crops is changed."""
    loaded = _loaded()
    batch = loaded.to("cpu")
    crops = [loaded.cut.global_crops, loaded.cut.local_crops]
    places = [(crop, place) for crop, each in enumerate((2, 2)) for place in range(each)]
    finished = [*batch.global_crops.unflatten(0, (2, 2)), *batch.local_crops.unflatten(0, (2, 2))]  # type: ignore
    for row, (kind, place), found in zip(loaded.changes, places, finished, strict=True):
        cut = crops[kind].unflatten(0, (2, 2))[place]  # type: ignore[union-attr]
        assert cut.dtype == torch.uint8
        torch.testing.assert_close(found, finish(cut, row, loaded.norm), atol=1e-5, rtol=0)
    for name, value in vars(loaded.cut).items():
        if not name.endswith("_crops"):
            same = torch.equal(value, getattr(batch, name)) if isinstance(value, torch.Tensor) else True
            assert same, name


def test_a_loaded_batch_is_small_until_it_is_there() -> None:
    """Crops travel in 8 bits, in the order of memory that they were cut in: one copy a tensor, none before it."""
    loaded = _loaded()
    assert loaded.cut.global_crops.is_contiguous(memory_format=torch.channels_last)
    moved = loaded.to("meta")
    assert moved.global_crops.device.type == "meta"
    assert moved.global_crops.dtype == torch.float32
    if torch.accelerator.is_available():
        pinned = loaded.pin_memory()
        assert pinned.cut.global_crops.is_pinned()
        assert pinned.cut.mask_indices.is_pinned()
        assert pinned.changes.is_pinned()


@pytest.fixture
def runs(parity_dir: Path) -> list[tuple[dict, dict[str, np.ndarray]]]:
    arrays = dict(np.load(parity_dir / "collate.npz"))
    runs = json.loads((parity_dir / "collate.json").read_text())["runs"]
    assert runs
    return [
        (run, {key.partition("/")[2]: a for key, a in arrays.items() if key.startswith(f"run{i}/")})
        for i, run in enumerate(runs)
    ]


class TestReferenceValues:
    """collate.npz, collate.json: the original's collation. Its random numbers differ, its rules do not."""

    @staticmethod
    def _collated(run: dict, arrays: dict[str, np.ndarray]) -> PretrainBatch:
        def crops(image: int, kind: str, count: int) -> list[torch.Tensor]:
            return [torch.from_numpy(arrays[f"sample{image}/{kind}{place}"]) for place in range(count)]

        samples = [
            Sample(Crops(crops(i, "global", 2), crops(i, "local", run["n_local"])), i) for i in range(run["n_images"])
        ]
        config = MaskConfig(probability=run["mask_probability"], ratio=run["mask_ratio"])
        generator = torch.Generator().manual_seed(run["python_seed"])
        return collate(samples, config.build(tuple(run["grid"])), config, generator)

    def test_crops(self, runs: list) -> None:
        for run, arrays in runs:
            batch = self._collated(run, arrays)
            dtype = getattr(torch, run["dtype"].removeprefix("torch."))
            for ours, name in ((batch.global_crops, "global"), (batch.local_crops, "local")):
                assert ours is not None
                theirs = torch.from_numpy(arrays[f"collated_{name}_crops"])
                assert torch.equal(ours.to(dtype).float(), theirs), name

    def test_masks(self, runs: list) -> None:
        for run, arrays in runs:
            batch = self._collated(run, arrays)
            assert batch.masks.shape == arrays["collated_masks"].shape
            assert batch.mask_weights.dtype == torch.float32
            assert batch.mask_indices.dtype == torch.int64
            assert len(batch.mask_indices) == run["upperbound"]
            _check_masks(batch)
            assert int((batch.masks.sum(1) > 0).sum()) == run["n_crops_masked"]
            assert float(batch.mask_weights.sum()) == pytest.approx(run["sum_of_masks_weight"], rel=1e-5)
            counts = [count for count in batch.masks.sum(1).sort().values.tolist() if count]
            for count, (lower, upper) in zip(counts, run["stratum_bounds"], strict=True):
                assert lower <= count <= upper

    def test_indices_and_weights_from_the_original_masks(self, runs: list, monkeypatch: pytest.MonkeyPatch) -> None:
        for run, arrays in runs:
            masks = torch.from_numpy(arrays["collated_masks"])
            with monkeypatch.context() as patch:
                patch.setattr("franca.data.batch.draw_masks", lambda *_, m=masks, r=run: (m, r["upperbound"]))
                batch = self._collated(run, arrays)
            real = run["n_masked"]
            assert int(batch.mask_valid.sum()) == real
            assert torch.equal(batch.mask_indices[:real], torch.from_numpy(arrays["mask_indices_list"]))
            torch.testing.assert_close(batch.mask_weights[:real], torch.from_numpy(arrays["masks_weight"]))

    def test_real_scale(self, parity_dir: Path) -> None:
        content = json.loads((parity_dir / "collate.json").read_text())
        (key,) = [key for key in content if key.startswith("real_scale_")]
        n_images, height, width = map(int, re.findall(r"\d+", key))
        config = MaskConfig()
        mask, generator = config.build((height, width)), torch.Generator().manual_seed(0)
        draws = [draw_masks(2 * n_images, mask, config, generator) for _ in range(50)]
        assert sorted({upper for _, upper in draws}) == content[key]["upperbound"]
        real = np.array([int(masks.sum()) for masks, _ in draws])
        assert real.mean() == pytest.approx(content[key]["n_masked_mean"], rel=0.002)
        assert real.max() <= content[key]["upperbound"][0]
