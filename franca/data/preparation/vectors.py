"""Embeddings in shards on disk, read as one matrix in blocks; every row belongs to a named image.

A shard is `NAME.npy` of shape (N, D), with the images' names in `NAME.txt`, one a line, or `NAME.npz` with the arrays
`embeddings` (N, D) and `names` (N,). Without names a row is called NAME:ROW. `.npy` is read piece by piece; `.npz` can
only be read whole, one shard at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from franca.data.preparation.errors import PreparationError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class Shard:
    """Rows start … start + rows - 1 of the whole."""

    file: Path
    start: int
    rows: int


class Embeddings:
    """The rows of all shards, in the order of their paths.

    Args:
        inputs: shards, or folders that hold them at any depth.

    Raises:
        PreparationError: there are none, a file isn't such a shard, or widths differ.
    """

    def __init__(self, inputs: Sequence[str | Path]) -> None:
        # Of this object alone: files may change between two of them.
        self._matrix = lru_cache(maxsize=4)(_read_matrix)
        self._names = lru_cache(maxsize=64)(_read_names)
        self.shards: list[Shard] = []
        self.width = 0
        start = 0
        for file in find_shards(inputs):
            rows, width = self._matrix(file).shape
            if self.width and rows and width != self.width:
                raise PreparationError(
                    f"{file} holds vectors of width {width}, {self.shards[0].file} of {self.width}: they must come "
                    "from one model"
                )
            self.width = self.width or width
            if rows:
                named = self._names(file)
                if named is not None and len(named) != rows:
                    raise PreparationError(
                        f"{file} holds {rows} vectors and {len(named)} names: there must be one for each"
                    )
                self.shards.append(Shard(file, start, rows))
            start += rows
        self._starts = np.array([shard.start for shard in self.shards], dtype=np.int64)
        if not start:
            raise PreparationError(f"no vectors in {', '.join(map(str, inputs))}: every shard is empty")

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].rows

    @property
    def files(self) -> list[Path]:
        """All files that are read, those of names included."""
        names = (names_file(shard.file) for shard in self.shards)
        return [*(shard.file for shard in self.shards), *(file for file in names if file.is_file())]

    def rows(self, numbers: Integers) -> Floats:
        """(n,) ascending -> (n, D) fp32, of length 1. A row that is zero or not finite comes as zeros."""
        parts = [
            np.asarray(self._matrix(shard.file)[inside], dtype=np.float32) for shard, inside in self._by_shard(numbers)
        ]
        matrix = np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)
        usable = np.isfinite(matrix).all(axis=1, keepdims=True)
        matrix = np.where(usable, matrix, np.float32(0))
        # The largest entry first: the squares of very long or short vectors leave the range of fp32.
        peak = np.abs(matrix).max(axis=1, keepdims=True, initial=0)
        matrix /= np.where(peak > 0, peak, 1)
        length = np.linalg.norm(matrix, axis=1, keepdims=True)
        return np.ascontiguousarray(matrix / np.where(length > 0, length, 1))

    def names(self, numbers: Integers) -> list[str]:
        """Names of the images of some rows, in any order."""
        order = np.argsort(numbers, kind="stable")
        found: list[str] = []
        for shard, inside in self._by_shard(numbers[order]):
            named = self._names(shard.file)
            rows = inside.tolist()
            found += [f"{shard.file.stem}:{row}" for row in rows] if named is None else [named[row] for row in rows]
        placed = dict(zip(order.tolist(), found, strict=True))
        return [placed[place] for place in range(len(numbers))]

    def _by_shard(self, numbers: Integers) -> Iterator[tuple[Shard, Integers]]:
        """Each shard that holds some of the ascending numbers, and their places in it."""
        owner = np.searchsorted(self._starts, numbers, side="right") - 1
        for place in np.unique(owner):
            shard = self.shards[place]
            yield shard, numbers[owner == place] - shard.start


def find_shards(inputs: Sequence[str | Path]) -> list[Path]:
    """The shards, folders replaced by what they hold in alphabetical order. Raises PreparationError."""
    files: dict[Path, None] = {}
    for given in inputs:
        path = Path(given).expanduser()
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not path.exists() or not found:
            raise PreparationError(f"{path} " + ("holds no .npy or .npz file" if path.exists() else "does not exist"))
        files |= dict.fromkeys(found)
    return list(files)


def names_file(shard: Path) -> Path:
    """Where the names of an .npy shard stand, one a line."""
    return shard.with_suffix(".txt")


class Lines(Sequence[str]):
    """The lines of a text file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        text = np.memmap(file, dtype=np.uint8, mode="r") if file.stat().st_size else np.empty(0, np.uint8)
        ends = np.flatnonzero(text == ord("\n")).astype(np.int64)
        unfinished = len(text) > 0 and text[-1] != ord("\n")
        self._text, self._ends = text, np.append(ends, len(text)) if unfinished else ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        start = self._ends[number - 1] + 1 if number else 0
        return bytes(self._text[start : self._ends[number]]).decode(errors="surrogateescape")


def _read_matrix(file: Path) -> NDArray[np.floating]:
    """(N, D): mapped from an .npy file, read from an .npz file."""
    try:
        if file.suffix == ".npy":
            matrix = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                matrix = content["embeddings"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, BadZipFile) as error:
        raise PreparationError(
            f"{file} can't be read as embeddings ({error}): an .npy file is one array (images, width), an .npz file "
            "holds it as `embeddings`"
        ) from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise PreparationError(f"{file} holds {matrix.dtype} of shape {matrix.shape}, not floats (images, width)")
    return matrix


def _read_names(file: Path) -> Sequence[str] | None:
    """Of every row of a shard, None where it has no names."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as content:
            return [str(name) for name in content["names"]] if "names" in content.files else None
    return Lines(names_file(file)) if names_file(file).is_file() else None
