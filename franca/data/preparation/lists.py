"""The lists that a step on embeddings leaves: the images that stay, and those that go with what they are alike to."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from franca.data.preparation.errors import PreparationError
from franca.data.preparation.vectors import Embeddings, Integers
from franca.data.preparation.work_folder import WorkFolder

KEPT, DROPPED = "kept.txt", "dropped.tsv"
AT_ONCE = 8192


def write_lists(work: WorkFolder, vectors: Embeddings, dropped: Integers, others: Embeddings, alike: Integers) -> None:
    """`kept.txt`: a name per line. `dropped.tsv`: name, name of the image it is alike to, their cosine similarity.

    Args:
        work: the step's folder.
        vectors: all images.
        dropped: (n,) ascending rows of `vectors`.
        others, alike: what the rows of `dropped` are alike to: rows (n,) of `others`.
    """

    def write_dropped(file: BinaryIO) -> None:
        for start in range(0, len(dropped), AT_ONCE):
            rows, partners = dropped[start : start + AT_ONCE], alike[start : start + AT_ONCE]
            distinct, place = np.unique(partners, return_inverse=True)
            similarity = np.sum(vectors.rows(rows).astype(np.float64) * others.rows(distinct)[place], axis=1)
            named = zip(vectors.names(rows), others.names(partners), similarity.tolist(), strict=True)
            for name, other, value in named:
                file.write(f"{name}\t{other}\t{value:.4f}\n".encode(errors="surrogateescape"))

    def write_kept(file: BinaryIO) -> None:
        for start in range(0, len(vectors), AT_ONCE):
            stop = min(start + AT_ONCE, len(vectors))
            low, high = np.searchsorted(dropped, [start, stop])
            for name in vectors.names(np.delete(np.arange(start, stop), dropped[low:high] - start)):
                file.write(f"{name}\n".encode(errors="surrogateescape"))

    work.write(DROPPED, write_dropped)
    work.write(KEPT, write_kept)


def read_dropped(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset of its line, name) of every image in a `dropped.tsv`. Raises PreparationError."""
    if not file.is_file():
        raise PreparationError(f"no list of dropped images at {file}; give the {DROPPED} of a finished step")
    offset = 0
    with file.open("rb") as lines:
        for line in lines:
            name, tab, _ = line.partition(b"\t")
            if not tab:
                raise PreparationError(f"{file} is no {DROPPED}: the line {line[:80]!r} has no tab")
            yield offset, name
            offset += len(line)
