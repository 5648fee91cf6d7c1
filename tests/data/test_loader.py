import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from franca.data.batch import PretrainBatch
from franca.data.errors import EmptyFolder, TooManyBrokenFiles, UnreadableImage, WorkerDied
from franca.data.loader import DataConfig, PretrainLoader
from franca.data.masking import MaskConfig
from franca.data.multi_crop import CropConfig
from franca.data.sources import SOURCES, Source
from franca.data.sources.folder import ImageFolder

# More workers than the test machine has cores, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Numbered:
    """Image ``i`` is filled with the value i; those in ``broken`` cannot be read."""

    classes: list[str] = []
    labels: list[int] | None = None

    def __init__(self, length: int, broken: tuple[int, ...] = ()) -> None:
        self.length, self.broken = length, broken
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"image{index}"

    def load(self, index: int) -> Tensor:
        self.loaded.append(index)
        if index in self.broken:
            raise UnreadableImage(self.name(index), "broken on purpose")
        return torch.full((3, 20, 20), index, dtype=torch.uint8)


class LosesItsWorker(Numbered):
    """Its worker is killed while it reads the fifth image, as by the kernel when memory runs out."""

    def load(self, index: int) -> Tensor:
        if len(self.loaded) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)


def _config(**options) -> DataConfig:
    crops = CropConfig(global_size=28, local_size=14, local_count=2)
    return DataConfig(**{"path": "somewhere", "batch_size": 3, "workers": 0, "crops": crops} | options)


def _plain_config(**options) -> DataConfig:
    """Crops keep the value of a constant image."""
    plain = {"flip": 0.0, "colour_jitter": 0.0, "grayscale": 0.0, "solarize": 0.0, "blur": "off"}
    crops = CropConfig(global_size=56, local_count=0, mean=[0.0] * 3, std=[1 / 255] * 3, **plain)
    return _config(crops=crops, **options)


def _loader(source: Source, config: DataConfig, seed: int = 0) -> PretrainLoader:
    return PretrainLoader(source, config, seed=seed, patch_size=14)


def _take(loader: PretrainLoader, count: int, start: int = 0) -> list[PretrainBatch]:
    return [batch.to("cpu") for batch in islice(loader.batches(start), count)]


def _assert_equal(a: PretrainBatch, b: PretrainBatch) -> None:
    for name, value in vars(a).items():
        same = torch.equal(value, getattr(b, name)) if isinstance(value, Tensor) else value == getattr(b, name)
        assert same, name


def _images_shown(batches: list[PretrainBatch]) -> list[int]:
    """Numbers of a Numbered source's images, in order."""
    return [round(float(crop[0, 7, 7])) for batch in batches for crop in batch.global_crops[: batch.n_images]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve noisy images, two of them broken."""
    noise = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    for i in (3, 8):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    return tmp_path


class TestOrder:
    @pytest.fixture
    def whole(self, folder: Path) -> list[PretrainBatch]:
        """Nine batches of three: more than two epochs of twelve."""
        return _take(_loader(ImageFolder(str(folder)), _config(max_broken_share=0.5)), 9)

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_workers_change_nothing(self, folder: Path, whole: list[PretrainBatch], workers: int) -> None:
        loader = _loader(ImageFolder(str(folder)), _config(max_broken_share=0.5, workers=workers))
        for batch, expected in zip(_take(loader, 9), whole, strict=True):
            _assert_equal(batch, expected)
        assert loader.skipped.broken == sum(len(batch.skipped) for batch in whole) > 0

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("start", [1, 4, 7])
    def test_a_later_start_continues(self, folder: Path, whole: list[PretrainBatch], start: int, workers: int) -> None:
        loader = _loader(ImageFolder(str(folder)), _config(max_broken_share=0.5, workers=workers))
        for batch, expected in zip(_take(loader, 9 - start, start), whole[start:], strict=True):
            _assert_equal(batch, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_other_ways_to_start_workers(self, folder: Path, whole: list[PretrainBatch], method: str) -> None:
        loader = _loader(ImageFolder(str(folder)), _config(max_broken_share=0.5, workers=1, start_method=method))
        for batch, expected in zip(_take(loader, 2), whole, strict=False):
            _assert_equal(batch, expected)

    def test_the_runs_own_random_state_is_left_alone(self, folder: Path) -> None:
        for workers in (0, 1):
            state = torch.get_rng_state()
            _take(_loader(ImageFolder(str(folder)), _config(max_broken_share=0.5, workers=workers)), 2)
            assert torch.equal(torch.get_rng_state(), state)

    def test_random_state_changes_nothing(self, folder: Path, whole: list[PretrainBatch]) -> None:
        torch.manual_seed(99)
        loader = _loader(ImageFolder(str(folder)), _config(max_broken_share=0.5))
        _assert_equal(_take(loader, 1)[0], whole[0])

    def test_seeds_differ(self) -> None:
        first, second = (_take(_loader(Numbered(50), _plain_config(), seed=seed), 3) for seed in (0, 1))
        assert _images_shown(first) != _images_shown(second)
        assert not torch.equal(first[0].masks, second[0].masks)

    def test_every_epoch_shows_every_image_once_in_a_new_order(self) -> None:
        shown = _images_shown(_take(_loader(Numbered(15), _plain_config()), 15))
        epochs = [shown[i : i + 15] for i in (0, 15, 30)]
        assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_sample_numbers_count_on(self) -> None:
        assert [batch.sample_numbers for batch in _take(_loader(Numbered(5), _config()), 2, start=4)] == [
            [12, 13, 14],
            [15, 16, 17],
        ]

    def test_an_image_is_cropped_anew_in_every_epoch(self) -> None:
        source = Numbered(1)
        source.load = lambda index: torch.arange(1200, dtype=torch.float).view(3, 20, 20).to(torch.uint8)  # type: ignore
        batch = _take(_loader(source, _config()), 1)[0]
        assert not torch.equal(batch.global_crops[0], batch.global_crops[1])
        assert not torch.equal(batch.global_crops[0], batch.global_crops[3])


class TestBrokenFiles:
    def test_replacements_are_a_function_of_the_sample(self) -> None:
        source = Numbered(60, broken=(5, 6, 40))
        first, again = (_take(_loader(source, _plain_config(), seed=3), 20) for _ in range(2))
        assert _images_shown(first) == _images_shown(again)
        assert set(_images_shown(first)).isdisjoint(source.broken)
        assert {file.name for batch in first for file in batch.skipped} == {"image5", "image6", "image40"}
        late = _take(_loader(source, _plain_config(), seed=3), 5, start=15)
        assert _images_shown(late) == _images_shown(first[15:])

    def test_replacements_differ_from_sample_to_sample(self) -> None:
        source = Numbered(200, broken=tuple(range(20)))
        batches = _take(_loader(source, _plain_config(batch_size=200, max_broken_share=0.5)), 1)
        replaced = [image for image in range(200) if _images_shown(batches).count(image) > 1]
        assert len(replaced) > 10

    def test_counted_and_named_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        source = Numbered(100, broken=(1, 2, 3, 4, 5, 6, 7))
        loader = _loader(source, _config(batch_size=50))
        with caplog.at_level(logging.WARNING, logger="franca.data.skip_log"):
            _take(loader, 8)
        assert loader.skipped.loads == 400 + loader.skipped.broken
        assert loader.skipped.broken >= 28
        assert len(loader.skipped.first) == 5
        named = [record.message for record in caplog.records if "broken on purpose" in record.message]
        assert len(named) == 5
        assert named[0].startswith("skipped image")
        assert any(re.fullmatch(r"10 of \d+ reads failed so far", record.message) for record in caplog.records)

    def test_too_many_stop_the_run(self) -> None:
        source = Numbered(250, broken=tuple(range(50)))
        loader = _loader(source, _config(batch_size=10))
        with pytest.raises(
            TooManyBrokenFiles, match=r"max_broken_share=0\.1.*image\d+ \(broken on purpose\)"
        ) as caught:
            _take(loader, 100)
        assert 100 <= loader.skipped.loads < 150  # no verdict before a hundred files
        assert f"{loader.skipped.broken} of {loader.skipped.loads} reads of a file failed" in str(caught.value)

    def test_a_short_epoch_is_judged_when_it_is_over(self) -> None:
        with pytest.raises(TooManyBrokenFiles, match=r"%\), more than"):
            _take(_loader(Numbered(10, broken=(0, 1, 2)), _config()), 5)

    def test_the_limit_is_an_option(self) -> None:
        source = Numbered(250, broken=tuple(range(50)))
        assert len(_take(_loader(source, _config(batch_size=10, max_broken_share=0.4)), 40)) == 40

    @pytest.mark.parametrize("workers", [0, 1])
    def test_nothing_readable_stops_at_once(self, workers: int) -> None:
        source = Numbered(20, broken=tuple(range(20)))
        with pytest.raises(
            TooManyBrokenFiles, match=r"^50 files in a row cannot be read.*image\d+ \(broken on purpose\)"
        ):
            _take(_loader(source, _config(workers=workers)), 1)

    def test_other_errors_are_not_swallowed(self) -> None:
        source = Numbered(5)
        source.load = lambda index: 1 / 0  # type: ignore
        with pytest.raises(ZeroDivisionError):
            _take(_loader(source, _config()), 1)


class TestWorkers:
    def test_a_lost_worker_is_a_clear_error(self) -> None:
        with pytest.raises(WorkerDied, match=r"data\.workers \(now 1\) or data\.prefetch \(now 2\)"):
            _take(_loader(LosesItsWorker(50), _config(workers=1)), 50)

    def test_workers_end_with_the_iterator(self) -> None:
        batches = _loader(Numbered(50), _config(workers=2)).batches()
        next(batches)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        batches.close()  # type: ignore[attr-defined]
        assert not any(worker.is_alive() for worker in workers)

    @pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
    def test_signals_to_the_group_do_not_reach_workers(self) -> None:
        """After Ctrl-C the main process still saves, with its workers there: their loss would be an error."""
        batches = _loader(Numbered(50), _config(workers=1)).batches()
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
        batches.close()  # type: ignore[attr-defined]

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @pytest.mark.parametrize("end", ["error", "kill -9"])
    def test_workers_die_with_the_main_process(self, end: str) -> None:
        """Whether it is killed, or ends by an error while its batches are still referred to."""
        script = textwrap.dedent("""
            import multiprocessing, sys, time
            from franca.data.loader import DataConfig, PretrainLoader
            from franca.data.multi_crop import CropConfig
            from franca.data.sources.photographs import SamplePhotographs
            config = DataConfig(source="photographs", batch_size=2, workers=1,
                                crops=CropConfig(global_size=28, local_count=0))
            batches = PretrainLoader(SamplePhotographs(), config, seed=0, patch_size=14).batches()
            next(batches)
            print(multiprocessing.active_children()[0].pid, flush=True)
            sys.stdin.readline()
            raise KeyboardInterrupt
        """)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            worker = int(process.stdout.readline())
            assert _runs(worker)
            if end == "kill -9":
                process.kill()
            else:
                process.stdin.write("\n")
                process.stdin.flush()
            process.wait(timeout=20)
        limit = time.monotonic() + 20
        while _runs(worker) and time.monotonic() < limit:
            time.sleep(0.2)
        assert not _runs(worker)


def _runs(pid: int) -> bool:
    """Whether the process is there and no mere remains (a zombie)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class TestConfig:
    def test_structured_round_trip(self) -> None:
        """OmegaConf reads the dataclasses as types: nested keys, checked values, the same object back."""
        read = OmegaConf.merge(
            OmegaConf.structured(DataConfig),
            OmegaConf.create({"path": "x", "crops": {"global_scale": [0.4, 1]}, "mask": {"kind": "block"}}),
        )
        config = OmegaConf.to_object(read)
        assert config == DataConfig(path="x", crops=CropConfig(global_scale=[0.4, 1.0]), mask=MaskConfig(kind="block"))
        assert OmegaConf.to_object(OmegaConf.structured(config)) == config

    def test_checks_run_on_what_was_read(self) -> None:
        read = OmegaConf.merge(OmegaConf.structured(DataConfig), {"mask": {"ratio": [0.9, 0.1]}})
        with pytest.raises(ValueError, match=r"data\.mask\.ratio"):
            OmegaConf.to_object(read)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"source": "foldr"}, r"data\.source='foldr'.*folder"),
            ({"batch_size": 0}, r"data\.batch_size=0"),
            ({"workers": -1}, r"data\.workers=-1"),
            ({"prefetch": 0}, r"data\.prefetch=0"),
            ({"channels": 0}, r"data\.channels=0"),
            ({"channels": 4}, r"data\.crops\.mean=.* has 3 values, but data\.channels=4"),
            ({"start_method": "threads"}, r"data\.start_method='threads'.*auto.*spawn"),
            ({"max_broken_share": 2}, r"data\.max_broken_share=2"),
        ],
    )
    def test_bad_options_are_named(self, options: dict, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            DataConfig(**options)

    def test_crops_that_hold_no_whole_patches(self) -> None:
        with pytest.raises(ValueError, match=r"data\.crops\.global_size=30 .* patch size 14.*28 or 42"):
            _loader(Numbered(3), _config(crops=CropConfig(global_size=30)))

    def test_sources_are_built_by_name(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        assert len(DataConfig(path=str(folder)).build_source()) == 12
        for name in SOURCES:
            assert DataConfig(source=name).source == name
        with pytest.raises(EmptyFolder):
            DataConfig(path=str(tmp_path_factory.mktemp("empty"))).build_source()

    def test_defaults_leave_a_core_to_the_main_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cores, workers in ((1, 0), (2, 1), (64, 8)):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
            assert DataConfig().workers == workers


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(tmp_path: Path, channels: int) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 256, (30, 30, channels), dtype=np.uint8))
    crops = CropConfig(global_size=28, local_size=14, local_count=1, mean=[0.5] * channels, std=[0.2] * channels)
    config = DataConfig(path=str(tmp_path), channels=channels, batch_size=2, workers=0, crops=crops)
    batch = next(_loader(config.build_source(), config).batches(0)).to("cpu")
    assert batch.global_crops.shape == (4, channels, 28, 28)
    assert batch.masks.shape == (4, 4)


def test_real_photographs(data_dir: Path) -> None:
    """A small epoch over whatever real images there are, without one file skipped."""
    source = ImageFolder(str(data_dir / "photos"))
    loader = _loader(source, _config(batch_size=7))
    batches = loader.batches()
    for batch in (loaded.to("cpu") for loaded in islice(batches, 3)):
        assert batch.global_crops.isfinite().all()
        assert batch.global_crops.std() > 0.3
    assert loader.skipped.broken == 0
