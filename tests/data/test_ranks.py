"""Several ranks and workers: every image once, the same again after a stop, on as many ranks or on others."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca.data.batch import PretrainBatch
from franca.data.config import DataConfig, PartConfig
from franca.data.errors import DataError, TooManyBrokenFiles
from franca.data.loader import PretrainLoader
from franca.data.multi_crop import CropConfig
from franca.data.sources.shards import ShardConfig

# More workers than the test machine has cores, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MakeShards = Callable[[int, int], Path]
PLAIN = {"flip": 0.0, "colour_jitter": 0.0, "grayscale": 0.0, "solarize": 0.0, "blur": "off"}


def _config(path: str | Path = "", source: str = "shards", buffer: int = 4, **options) -> DataConfig:
    """Crops keep the colour of an image of one colour."""
    crops = CropConfig(global_size=28, local_count=0, mean=[0.0] * 3, std=[1 / 255] * 3, **PLAIN)
    shards = ShardConfig(streams=6, buffer=buffer)
    defaults = {"batch_size": 4, "workers": 0, "crops": crops, "shards": shards, "max_broken_share": 0.5}
    return DataConfig(source=source, path=str(path), **defaults | options)


def _loaders(config: DataConfig, ranks: int, seed: int = 0) -> list[PretrainLoader]:
    """One loader per rank; each builds its source itself, as processes do."""
    places = [(rank, ranks) for rank in range(ranks)]
    return [PretrainLoader(config.build(), config, seed, 14, False, *place) for place in places]


def _take(loaders: list[PretrainLoader], count: int) -> list[list[PretrainBatch]]:
    """The next batches of each rank."""
    return [[batch.to("cpu") for batch in islice(loader.batches(), count)] for loader in loaders]


def _numbers(batches: list[list[PretrainBatch]]) -> list[int]:
    """Numbers of the images shown (see the fixture `numbered`), rank by rank."""
    crops = [crop for of_rank in batches for batch in of_rank for crop in batch.global_crops[: batch.n_images]]
    return [round(float(crop[0, 7, 7])) * 256 + round(float(crop[1, 7, 7])) for crop in crops]


def _whole(loaders: list[PretrainLoader]) -> dict[str, Tensor]:
    """The state of the run from those of its ranks."""
    states = [loader.state_dict() for loader in loaders]
    return {name: torch.stack([state[name] for state in states]).amax(0) for name in states[0]}


def _resume(config: DataConfig, ranks: int, state: dict[str, Tensor], seed: int = 0) -> list[PretrainLoader]:
    loaders = _loaders(config, ranks, seed)
    for loader in loaders:
        loader.load_state_dict(state)
    return loaders


def _assert_equal(found: list[list[PretrainBatch]], expected: list[list[PretrainBatch]]) -> None:
    for a, b in zip(chain(*found), chain(*expected), strict=True):
        for name, value in vars(a).items():
            same = torch.equal(value, getattr(b, name)) if isinstance(value, Tensor) else value == getattr(b, name)
            assert same, name


@pytest.fixture
def shards(make_shards: MakeShards) -> Path:
    """Images 0 to 47 in six shards."""
    return make_shards(6, 8)


@pytest.fixture
def layouts(shards: Path, tmp_path: Path, make_tar: Callable[..., Path], numbered: Callable[[int], bytes]) -> Path:
    """The same images in every layout, each in a folder that is named like its source."""
    for number in range(48):
        file = tmp_path / "folder" / str(number % 4) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(numbered(number))
    for label in range(4):
        make_tar(tmp_path / "tars" / f"{label}.tar", {f"{n}.png": numbered(n) for n in range(label, 48, 4)})
    return tmp_path


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 2), (3, 1), (6, 0)])
@pytest.mark.parametrize("source", ["folder", "tars", "shards"])
def test_every_image_once_over_ranks_and_workers(layouts: Path, source: str, ranks: int, workers: int) -> None:
    config = _config(layouts / source, source, workers=workers, batch_size=2)
    batches = _take(_loaders(config, ranks), 2 * 48 // (2 * ranks))
    assert Counter(_numbers(batches)) == dict.fromkeys(range(48), 2)
    first_pass = [of_rank[: len(of_rank) // 2] for of_rank in batches]
    assert sorted(_numbers(first_pass)) == list(range(48))


class TestOrder:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_change_nothing(self, shards: Path, workers: int) -> None:
        alone, shared = (_take(_loaders(_config(shards, workers=count), 2), 8) for count in (0, workers))
        _assert_equal(shared, alone)

    def test_a_function_of_the_seed(self, shards: Path) -> None:
        first, again, other = (_numbers(_take(_loaders(_config(shards), 2, seed), 6)) for seed in (0, 0, 1))
        assert first == again
        assert first != other
        assert sorted(first) == sorted(other)

    def test_random_state_changes_nothing_and_is_left_alone(self, shards: Path) -> None:
        expected = _take(_loaders(_config(shards), 1), 3)
        torch.manual_seed(99)
        state = torch.get_rng_state()
        _assert_equal(_take(_loaders(_config(shards), 1), 3), expected)
        assert torch.equal(torch.get_rng_state(), state)

    def test_shards_and_buffers_are_shuffled_anew_in_every_pass(self, shards: Path) -> None:
        numbers = _numbers(_take(_loaders(_config(shards, buffer=8), 1), 24))
        passes = [numbers[:48], numbers[48:]]
        assert passes[0] != passes[1]
        for shown in passes:
            assert sorted(shown) == list(range(48))
            assert all(len({number // 8 for number in shown[n : n + 6]}) == 6 for n in range(0, 48, 6))  # all streams
            in_shard = [[number for number in shown if number // 8 == shard] for shard in range(6)]
            assert sum(order != sorted(order) for order in in_shard) >= 5

    @pytest.mark.parametrize("source", ["folder", "tars"])
    def test_ranks_and_accumulation_share_the_same_global_batch(self, layouts: Path, source: str) -> None:
        """One rank that takes two batches per step sees what two ranks with one batch each see, masks included."""
        config = _config(layouts / source, source)
        (alone,) = _take(_loaders(config, 1), 6)
        first, second = _take(_loaders(config, 2), 3)
        _assert_equal([alone], [[batch for pair in zip(first, second, strict=True) for batch in pair]])


class TestResume:
    @pytest.mark.parametrize("damaged", [False, True])
    @pytest.mark.parametrize("stop", [1, 5, 7])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_on_as_many_ranks_nothing_changes(self, shards: Path, stop: int, workers: int, damaged: bool) -> None:
        if damaged:
            (shards / "001.tar").unlink()
            os.truncate(shards / "003.tar", (shards / "003.tar").stat().st_size // 2)
        config = _config(f"{shards}/{{000..005}}.tar", workers=workers, buffer=5)
        uninterrupted = _take(_loaders(config, 2), 12)
        before = _loaders(config, 2)
        _assert_equal(_take(before, stop), [batches[:stop] for batches in uninterrupted])
        after = _resume(config, 2, _whole(before))
        _assert_equal(_take(after, 12 - stop), [batches[stop:] for batches in uninterrupted])

    def test_on_other_numbers_of_ranks_nothing_is_repeated_or_lost(self, shards: Path) -> None:
        config = _config(shards, buffer=5)
        loaders = _loaders(config, 2)
        shown = _numbers(_take(loaders, 3))  # 24
        loaders = _resume(config, 3, _whole(loaders))
        shown += _numbers(_take(loaders, 1))  # 12
        loaders = _resume(config, 1, _whole(loaders))
        batches = _take(loaders, 3)  # 12
        assert sorted(shown + _numbers(batches)) == list(range(48))
        assert batches[0][0].sample_numbers == [36, 37, 38, 39]

    def test_a_loader_goes_on_from_where_it_stands(self, shards: Path) -> None:
        whole = _take(_loaders(_config(shards), 1), 6)
        loaders = _loaders(_config(shards, workers=1), 1)
        parts = [_take(loaders, count) for count in (1, 3, 2)]
        _assert_equal([[batch for (part,) in parts for batch in part]], whole)

    @pytest.mark.parametrize("source", ["folder", "tars"])
    def test_sources_with_numbers(self, layouts: Path, source: str) -> None:
        config = _config(layouts / source, source)
        loaders = _loaders(config, 2)
        shown = _numbers(_take(loaders, 3))
        state = _whole(loaders)
        assert int(state["images"]) == 24
        shown += _numbers(_take(_resume(config, 3, state), 2))
        assert sorted(shown) == list(range(48))
        start = [next(iter(loader.batches(3))).to("cpu") for loader in _loaders(config, 2)]
        _assert_equal([[batch] for batch in start], _take(_resume(config, 2, state), 1))

    def test_a_state_of_other_shards_is_refused(self, shards: Path) -> None:
        state = _whole(_loaders(_config(shards), 2))
        fewer = _config(f"{shards}/{{000..002}}.tar")
        with pytest.raises(DataError, match=r"of 6 streams.*describes 3.*data\.shards\.streams"):
            _resume(fewer, 1, state)

    def test_a_state_of_one_rank_alone_is_refused(self, shards: Path) -> None:
        state = _loaders(_config(shards), 2)[0].state_dict()
        with pytest.raises(DataError, match=r"6 streams of shards \(3 unknown\)"):
            _resume(_config(shards), 2, state)

    def test_shards_cannot_be_entered_anywhere(self, shards: Path) -> None:
        (loader,) = _loaders(_config(shards), 1)
        _take([loader], 2)
        assert next(iter(loader.batches(2))).cut.sample_numbers == [8, 9, 10, 11]
        with pytest.raises(DataError, match="can't be entered at batch 7: they stand at image 12"):
            loader.batches(7)

    def test_more_ranks_than_streams(self, shards: Path) -> None:
        with pytest.raises(DataError, match=r"6 shards in 6 streams cannot be shared by 7 ranks: make 7 shards"):
            _loaders(_config(shards), 7)
        few = _config(shards, shards=ShardConfig(streams=2))
        with pytest.raises(DataError, match=r"6 shards in 2 streams.*3 ranks: raise data\.shards\.streams"):
            _loaders(few, 3)


class TestDamage:
    def test_what_cannot_be_read_is_passed_over_and_counted(
        self, shards: Path, caplog: pytest.LogCaptureFixture, make_tar: Callable[..., Path]
    ) -> None:
        (shards / "001.tar").unlink()
        os.truncate(shards / "003.tar", 512 * 40)
        content = (shards / "005.tar").read_bytes()
        (shards / "005.tar").write_bytes(content.replace(b"\x89PNG", b"xxxx", 1))
        (loader,) = _loaders(_config(f"{shards}/{{000..005}}.tar", buffer=8), 1)
        numbers = _numbers(_take([loader], 20))
        lost = set(range(48)) - set(numbers)
        assert lost >= set(range(8, 16)) | {40}
        assert lost - set(range(8, 16)) - {40} <= set(range(24, 32))
        assert loader.skipped.shards >= 1
        assert loader.skipped.broken >= 2
        assert "skipped shard" in caplog.text
        for reason in ("001.tar: FileNotFoundError", "003.tar: cut off", "00040.png: UnidentifiedImageError"):
            assert reason in caplog.text

    @pytest.mark.parametrize("workers", [0, 1])
    def test_mostly_unreadable_shards_stop_the_run(self, shards: Path, workers: int) -> None:
        (loader,) = _loaders(_config(f"{shards}/{{000..005}}.tar", workers=workers), 1)
        for name in ("000", "001", "003", "004"):
            (shards / f"{name}.tar").write_bytes(b"")
        with pytest.raises(TooManyBrokenFiles, match=r"\d of \d+ shards opened hold no image.*\.tar \(ReadError"):
            _take([loader], 100)

    def test_mostly_unreadable_images_stop_the_run(self, make_tar: Callable[..., Path], tmp_path: Path) -> None:
        images = {f"{n}.jpg": b"no image" for n in range(40)}
        make_tar(tmp_path / "0.tar", images)
        config = _config(tmp_path, workers=1)
        with pytest.raises(DataError, match="no image could be read"):
            _loaders(config, 1)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_a_small_batch_has_replacements_too(
        self, tmp_path: Path, make_tar: Callable[..., Path], numbered: Callable[[int], bytes], batch_size: int
    ) -> None:
        images = {f"{n:02}.png": numbered(n) if n % 4 else b"no image" for n in range(1, 41)}
        make_tar(tmp_path / "0.tar", images)
        config = _config(tmp_path, batch_size=batch_size)
        first, again = (_take(_loaders(config, 1), 30) for _ in range(2))
        assert _numbers(first) == _numbers(again)
        assert all(number % 4 for number in _numbers(first))
        assert sum(len(batch.skipped) for batch in first[0]) > 5


class TestPipes:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_command_gives_what_the_file_gives(self, shards: Path, workers: int) -> None:
        files = _config(f"{shards}/{{000..005}}.tar", buffer=5)
        commands = _config(f"pipe:cat {shards}/{{000..005}}.tar", buffer=5, workers=workers)
        expected = _take(_loaders(files, 2), 10)
        loaders = _loaders(commands, 2)
        _assert_equal(_take(loaders, 4), [batches[:4] for batches in expected])
        _assert_equal(_take(_resume(commands, 2, _whole(loaders)), 6), [batches[4:] for batches in expected])

    def test_failing_commands_stop_the_run(self, shards: Path) -> None:
        (loader,) = _loaders(_config(f"pipe:cat {shards}/{{000..005}}.tar"), 1)
        for shard in ("000", "002", "003", "005"):
            (shards / f"{shard}.tar").unlink()
        with pytest.raises(TooManyBrokenFiles, match=r"the command failed with status 1: cat: .*No such file"):
            _take([loader], 100)


class TestReadingAhead:
    def test_the_thread_ends_with_the_iterator(self, shards: Path) -> None:
        (loader,) = _loaders(_config(shards, workers=1), 1)
        batches = loader.batches()
        next(batches)
        assert any(thread.name == "franca-read-ahead" for thread in threading.enumerate())
        batches.close()  # type: ignore[attr-defined]
        assert not any(thread.name == "franca-read-ahead" for thread in threading.enumerate())

    def test_what_was_read_ahead_is_not_lost(self, shards: Path) -> None:
        loaders = _loaders(_config(shards, workers=2, prefetch=4), 1)
        shown = [number for _ in range(4) for number in _numbers(_take(loaders, 3))]
        assert sorted(shown) == list(range(48))


class TestMixture:
    def _parts(self, layouts: Path, *weights: float | None) -> list[PartConfig]:
        names = ("folder", "tars", "shards")
        return [PartConfig(name, str(layouts / name), weight) for name, weight in zip(names, weights, strict=False)]

    def test_each_part_shows_all_before_it_repeats_one(self, layouts: Path) -> None:
        config = _config(source="mixture", parts=self._parts(layouts, 1.0, 1.0, 2.0), workers=1)
        shown: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for batches in _take(_loaders(config, 2), 30):
            for batch in batches:
                for part, number in zip(batch.parts, _numbers([[batch]]), strict=True):
                    shown[part].append(number)
        assert 80 < len(shown[2]) < 160
        assert max(Counter(shown[2]).values()) - min(Counter(shown[2]).values()) <= 1
        assert abs(len(shown[0]) - len(shown[1])) < 40

    def test_resume(self, layouts: Path) -> None:
        config = _config(source="mixture", parts=self._parts(layouts, 1.0, 1.0, 2.0))
        uninterrupted = _take(_loaders(config, 2), 9)
        loaders = _loaders(config, 2)
        _take(loaders, 4)
        _assert_equal(_take(_resume(config, 2, _whole(loaders)), 5), [batches[4:] for batches in uninterrupted])

    def test_a_small_part_that_is_broken_stops_the_run(self, layouts: Path, tmp_path: Path) -> None:
        for number in range(2, 10):
            (tmp_path / "few").mkdir(exist_ok=True)
            (tmp_path / "few" / f"{number}.png").write_bytes(b"no image")
        (tmp_path / "few" / "1.png").write_bytes((layouts / "folder" / "1" / "1.png").read_bytes())
        parts = [PartConfig("folder", str(layouts / "folder"), 20.0), PartConfig("folder", str(tmp_path / "few"), 1.0)]
        (loader,) = _loaders(_config(source="mixture", parts=parts, batch_size=16), 1)
        with pytest.raises(
            TooManyBrokenFiles, match=r"reads of a file from part 2 \(9 images\)|in a row cannot be read"
        ):
            _take([loader], 60)
