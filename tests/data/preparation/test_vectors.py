"""Embeddings on disk: rows and names by number over shards of every form, and shards that can't be used."""

from pathlib import Path

import numpy as np
import pytest

from franca.data.preparation.errors import PreparationError
from franca.data.preparation.vectors import Embeddings
from tests.data.preparation.conftest import save_shards, unit_rows


def test_rows_and_names_come_from_all_shards_in_the_order_of_their_paths(tmp_path: Path) -> None:
    rows = unit_rows(10, 5)
    names = [f"b/{i} ä.jpg" for i in range(4)]
    save_shards(tmp_path / "b", 7 * rows[:4], names, shards=2)
    np.savez(tmp_path / "c.npz", embeddings=rows[4:7].astype(np.float64), names=np.array(["x", "yy", "z"]))
    np.save(tmp_path / "d.npy", rows[7:].astype(np.float16))
    vectors = Embeddings([tmp_path])
    assert (len(vectors), vectors.width) == (10, 5)
    assert vectors.rows(np.arange(10)) == pytest.approx(rows, abs=1e-3)
    assert vectors.rows(np.array([1, 2, 6, 9])) == pytest.approx(rows[[1, 2, 6, 9]], abs=1e-3)
    assert vectors.names(np.array([9, 0, 5, 0, 3])) == ["d:2", "b/0 ä.jpg", "yy", "b/0 ä.jpg", "b/3 ä.jpg"]
    assert {file.name for file in vectors.files} == {
        *("00000.npy", "00000.txt", "00001.npy", "00001.txt", "c.npz", "d.npy")
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_row_without_a_direction_is_zero(value: float, tmp_path: Path) -> None:
    rows = unit_rows(3, 4)
    rows[1] *= 0
    rows[1, 2] = value
    np.save(tmp_path / "a.npy", rows)
    found = Embeddings([tmp_path / "a.npy"]).rows(np.arange(3))
    assert not found[1].any()
    assert found[[0, 2]] == pytest.approx(rows[[0, 2]])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_long_and_short_rows_keep_their_direction(scale: float, tmp_path: Path) -> None:
    rows = unit_rows(3, 4)
    np.save(tmp_path / "a.npy", rows * np.float32(scale))
    assert Embeddings([tmp_path]).rows(np.arange(3)) == pytest.approx(rows, abs=1e-6)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: np.save(folder / "a.npy", np.zeros(4, np.float32)), r"a\.npy holds float32 of shape \(4,\)"),
        (lambda folder: np.save(folder / "a.npy", np.zeros((4, 2), np.int64)), "holds int64"),
        (lambda folder: np.savez(folder / "a.npz", vectors=np.zeros((2, 2))), r"a\.npz can't be read as embeddings"),
        (lambda folder: (folder / "a.npz").write_bytes(b"PK\3\4 cut off"), r"a\.npz can't be read as embeddings"),
        (lambda folder: (folder / "a.npy").write_bytes(b""), r"a\.npy can't be read as embeddings"),
        (lambda folder: np.save(folder / "a.npy", np.array([{}], object)), r"a\.npy can't be read as embeddings"),
        (lambda folder: np.save(folder / "a.npy", np.zeros((0, 3), np.float32)), "every shard is empty"),
        (lambda folder: save_shards(folder, unit_rows(4, 3), ["a", "b", "c\nd", "e"], 1), "4 vectors and 5 names"),
        (lambda folder: None, r"holds no \.npy or \.npz file"),
        (lambda folder: folder.rmdir(), "does not exist"),
    ],
)
def test_what_is_no_shard_is_named(write, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    write(folder)
    with pytest.raises(PreparationError, match=message):
        Embeddings([folder])


def test_vectors_of_two_models_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", unit_rows(2, 3))
    np.save(tmp_path / "b.npy", unit_rows(2, 4))
    with pytest.raises(PreparationError, match=r"b\.npy holds vectors of width 4, .*a\.npy of 3"):
        Embeddings([tmp_path])
