"""Stored features are those of every readable image, however, wherever and in how many goes they were extracted."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from franca.eval import feature_table
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.feature_table import FeatureTable
from franca.eval.store import FeatureStore
from franca.eval.tokens import Tokens
from franca.eval.views import CentralSquare
from franca.files import held

VIEW = CentralSquare(8)
D = 6


class Embedder:
    """Features that are functions of the pixels alone: block b multiplies them by b + 1."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.images, self.fails_at = 0, fails_at

    def __call__(self, pixels: Tensor, blocks: int) -> list[Tokens]:
        self.images += len(pixels)
        if self.images > self.fails_at:
            raise KeyboardInterrupt
        patches = adaptive_avg_pool2d(pixels.float(), 2).permute(0, 2, 3, 1) / 255
        patches = torch.cat([patches, patches.square()], dim=-1)
        found = [Tokens(patches[:, 0, 0] * (b + 1), patches * (b + 1)) for b in range(4)]
        return found[4 - blocks :]


def track(items, description: str, total: int) -> Iterator:
    return iter(items)


def split_of(source) -> OpenedSplit:
    return OpenedSplit("made_up", "val", source, f"hash of {len(source)}")


@pytest.fixture
def make_store(tmp_path: Path):
    def make(embed: Embedder, **options) -> FeatureStore:
        options = {"stored_as": "fp32", "batch_size": 4} | options
        return FeatureStore(tmp_path / "cache", "model", embed, track, **options)

    return make


@pytest.mark.parametrize("broken", [(), (0, 7), (18,)])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2), (64, 0)])
def test_rows_are_those_of_the_readable_images(make_source, make_store, broken, batch_size, workers) -> None:
    source = make_source(19, classes=3, broken=broken)
    found = make_store(Embedder(), batch_size=batch_size, workers=workers).images(split_of(source), VIEW, blocks=2)
    numbers = found.index.tolist()
    assert sorted(numbers) == [number for number in range(19) if number not in broken]
    assert numbers == sorted(numbers) or broken  # rows move where some are missing
    assert found.labels.tolist() == [source.labels[number] for number in numbers]
    for row, number in enumerate(numbers):
        for block, tokens in enumerate(Embedder()(VIEW(source.images[number])[None], 2)):
            torch.testing.assert_close(found.cls[row, block], tokens.cls[0])
        torch.testing.assert_close(found.mean_patch[row, 0], tokens.patches[0].mean(dim=(0, 1)))  # of the last block


@pytest.mark.parametrize(("stored_as", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_rounds_and_no_more(make_source, make_store, stored_as, dtype) -> None:
    source = make_source(7, broken=(2,))
    exact = make_store(Embedder()).patches(split_of(source), VIEW)
    stored = make_store(Embedder(), stored_as=stored_as).patches(split_of(source), VIEW)
    assert stored.patches.dtype == dtype
    assert torch.equal(stored.patches, exact.patches.to(dtype))
    assert torch.equal(stored.index, exact.index)


def test_what_is_stored_is_not_computed_again(make_source, make_store) -> None:
    source, embed = make_source(9), Embedder()
    first = make_store(embed).images(split_of(source), VIEW)
    computed = embed.images
    assert torch.equal(make_store(embed).images(split_of(source), VIEW).cls, first.cls)
    assert embed.images == computed
    make_store(embed).images(split_of(source), CentralSquare(16))
    make_store(embed).images(split_of(make_source(8)), VIEW)
    make_store(embed, precision="bfloat16").images(split_of(source), VIEW)
    assert embed.images > computed + 9 + 8


def test_what_was_stored_with_more_blocks_serves_fewer(make_source, make_store) -> None:
    source, embed = make_source(9), Embedder()
    deep = make_store(embed).images(split_of(source), VIEW, blocks=4)
    computed = embed.images
    last = make_store(embed).images(split_of(source), VIEW)
    assert embed.images == computed
    assert torch.equal(last.cls, deep.cls[:, -1:])
    assert torch.equal(last.cls, make_store(Embedder(), precision="other").images(split_of(source), VIEW).cls)


def test_an_image_that_could_not_be_read_is_tried_again(make_source, make_store, caplog) -> None:
    source = make_source(6, broken=(1, 4))
    store, split = make_store(Embedder()), split_of(source)
    assert store.images(split, VIEW).index.tolist() == [0, 5, 2, 3]
    assert store.left_out == {"made_up val": 2}
    assert "image 1: cut off" in caplog.text
    assert "image 4: cut off" in caplog.text
    caplog.clear()
    source.images[1] = make_source(6).images[1]
    again = store.images(split, VIEW)
    assert again.index.tolist() == [0, 5, 2, 3, 1]
    assert "image 4: cut off" in caplog.text
    assert "image 1: cut off" not in caplog.text
    for row, number in enumerate(again.index):
        torch.testing.assert_close(again.cls[row, 0], Embedder()(VIEW(source.images[number])[None], 1)[0].cls[0])


def test_unreadable_images_cost_no_second_table(make_source, make_store, tmp_path: Path) -> None:
    found = make_store(Embedder()).patches(split_of(make_source(10, broken=(3, 4))), VIEW)
    assert found.index.tolist() == [0, 1, 2, 8, 9, 5, 6, 7]
    (table,) = (np.load(file, allow_pickle=False) for file in (tmp_path / "cache").rglob("patches*"))
    assert torch.equal(torch.from_numpy(table[:8]), found.patches)


def test_a_kill_while_rows_move_loses_none(make_source, make_store, monkeypatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    source = make_source(9, broken=(0, 4))
    with monkeypatch.context() as patch:
        patch.setattr(feature_table, "write_atomically", killed)  # of the order, when the rows are where they will be
        with pytest.raises(KeyboardInterrupt):
            make_store(Embedder()).images(split_of(source), VIEW)
    found = make_store(Embedder()).images(split_of(source), VIEW)
    assert len(found.index) == 7
    for row, number in enumerate(found.index):
        torch.testing.assert_close(found.cls[row, 0], Embedder()(VIEW(source.images[number])[None], 1)[0].cls[0])


def test_rows_that_are_missing_are_never_passed_over(make_source, make_store, monkeypatch) -> None:
    monkeypatch.setattr(FeatureTable, "mark", lambda *_: None)
    with pytest.raises(EvalError, match=r"5 rows of .* were not written"):
        make_store(Embedder()).images(split_of(make_source(5)), VIEW)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no space")
def test_a_full_disk_is_said_before_the_first_image(make_source, make_store, monkeypatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    embed = Embedder()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(EvalError, match=r"no room for features .*No space left on device.*--cache"):
            make_store(embed).images(split_of(make_source(5)), VIEW)
    assert embed.images == 1  # a sample, for the shapes
    assert list((tmp_path / "cache").rglob("*.npy")) == []
    assert len(make_store(embed).images(split_of(make_source(5)), VIEW).index) == 5


def test_an_interrupted_extraction_goes_on_where_it_was(make_source, make_store) -> None:
    source = make_source(23, broken=(1,))
    expected = make_store(Embedder(), stored_as="bf16").images(split_of(source), VIEW)
    with pytest.raises(KeyboardInterrupt):
        make_store(Embedder(fails_at=14)).images(split_of(source), VIEW)
    embed = Embedder()
    found = make_store(embed).images(split_of(source), VIEW)
    assert torch.equal(found.cls.bfloat16(), expected.cls)
    assert embed.images <= 23 - 1 - 8  # at least two batches of four were there


def test_features_that_are_not_finite_are_named(make_source, make_store) -> None:
    def embed(pixels: Tensor, blocks: int) -> list[Tokens]:
        return [Tokens(torch.full((len(pixels), D), 1e6), torch.zeros(len(pixels), 2, 2, D))] * blocks

    with pytest.raises(EvalError, match=r"features of image 0 are not finite in float16: try --store fp32"):
        make_store(embed, stored_as="fp16").images(split_of(make_source(3)), VIEW)
    make_store(embed, stored_as="bf16").images(split_of(make_source(3)), VIEW)


def test_a_set_of_which_nothing_can_be_read_is_an_error(make_source, make_store) -> None:
    with pytest.raises(EvalError, match="none of 3 images of made_up val can be read; the first: image 0: cut off"):
        make_store(Embedder()).images(split_of(make_source(3, broken=(0, 1, 2))), VIEW)


def test_two_runs_do_not_write_the_same_features_at_once(make_source, make_store, tmp_path: Path, caplog) -> None:
    store = make_store(Embedder())
    with pytest.raises(KeyboardInterrupt):
        make_store(Embedder(fails_at=2)).images(split_of(make_source(3)), VIEW)
    folder = next((tmp_path / "cache").iterdir())
    program = "import sys; from pathlib import Path; from franca.files import held\n"
    program += "with held(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(store.images, split_of(make_source(3)), VIEW)
            while "another process extracts the same features" not in caplog.text:
                assert not found.done()
                time.sleep(0.01)
            other.stdin.close()
            assert len(found.result().cls) == 3
    with held(folder):  # a finished table needs no lock
        store.images(split_of(make_source(3)), VIEW)


def test_a_network_without_class_token_gives_its_mean_patch(make_source, make_store) -> None:
    def embed(pixels: Tensor, blocks: int) -> list[Tokens]:
        return [Tokens(None, tokens.patches) for tokens in Embedder()(pixels, blocks)]

    found = make_store(embed).images(split_of(make_source(5)), VIEW)
    assert torch.equal(found.cls, found.mean_patch)


def test_rows_are_memory_mapped(make_source, make_store, tmp_path: Path) -> None:
    make_store(Embedder()).patches(split_of(make_source(5)), VIEW)
    file = next((tmp_path / "cache").rglob("patches.npy"))
    assert np.load(file, mmap_mode="r", allow_pickle=False).shape == (5, 2, 2, D)
