"""Metadata and embeddings made for the tests, and runs that stop in the middle."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from franca.data.preparation.work_folder import WorkFolder

# a row that every rule keeps, under LAION's names
GOOD: dict[str, Any] = {
    "SAMPLE_ID": 7,
    "URL": "https://example.org/a.jpg",
    "TEXT": "a cat",
    "WIDTH": 640,
    "HEIGHT": 480,
    "similarity": 0.31,
    "hash": 1,
    "punsafe": 0.01,
    "pwatermark": 0.2,
}


def write_rows(file: Path, rows: list[Mapping[str, Any]], types: Mapping[str, str] | None = None) -> Path:
    """A parquet file of these rows; types: column -> SQL type, where DuckDB should not guess."""
    file.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = ", ".join(f'v."{name}"::{(types or {}).get(name, kind(rows, name))} AS "{name}"' for name in names)
    values = ", ".join(f"({', '.join('?' for _ in names)})" for _ in rows)
    aliases = ", ".join(f'"{name}"' for name in names)
    target = str(file).replace("'", "''")
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT {columns} FROM (VALUES {values}) AS v({aliases})) TO '{target}' (FORMAT parquet)",
            [row.get(name) for row in rows for name in names],
        )
    return file


def kind(rows: list[Mapping[str, Any]], name: str) -> str:
    found = {type(row[name]) for row in rows if row.get(name) is not None}
    return "VARCHAR" if str in found or not found else "DOUBLE" if float in found else "BIGINT"


def listed(folder: Path) -> list[dict[str, Any]]:
    """All rows of a selection's list, in order."""
    files = sorted((folder / "list").glob("*.parquet"))
    if not files:
        return []
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT * FROM read_parquet($1) ORDER BY filename, file_row_number",
            [list(map(str, files))],
        )
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def urls(folder: Path) -> set[str]:
    return {row["url"] for row in listed(folder)}


def unit_rows(n: int, width: int, seed: int = 0) -> np.ndarray:
    """(n, width) fp32 of length 1; any two are far apart."""
    rows = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def near(rows: np.ndarray, similarity: float, seed: int = 1) -> np.ndarray:
    """(n, width): vectors with exactly this cosine similarity to the rows."""
    other = np.random.default_rng(seed).standard_normal(rows.shape)
    other -= (other * rows).sum(axis=1, keepdims=True) * rows
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return (similarity * rows + np.sqrt(1 - similarity**2) * other).astype(np.float32)


def save_shards(folder: Path, rows: np.ndarray, names: list[str], shards: int = 3) -> Path:
    """Rows and names in several .npy and .txt files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, places in enumerate(np.array_split(np.arange(len(rows)), shards)):
        np.save(folder / f"{number:05}.npy", rows[places])
        (folder / f"{number:05}.txt").write_text("".join(f"{names[place]}\n" for place in places))
    return folder


def dropped(folder: Path) -> dict[str, str]:
    """Name of each dropped image -> name of the one that it is alike to."""
    lines = (folder / "dropped.tsv").read_text().splitlines()
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """`with stop_after(n):` a step stops as n more parts are finished, inside the next one, with files half written."""

    @contextmanager
    def stopping(parts: int) -> Iterator[None]:
        left = parts
        whole = WorkFolder.part

        def part(self: WorkFolder, name: str, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
            nonlocal left

            def interrupted(folder: Path) -> Mapping[str, Any]:
                make(folder)
                raise KeyboardInterrupt

            if self.folder(name).is_dir():
                return whole(self, name, make)
            left -= 1
            return whole(self, name, make if left >= 0 else interrupted)

        with monkeypatch.context() as patch:
            patch.setattr(WorkFolder, "part", part)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopping
