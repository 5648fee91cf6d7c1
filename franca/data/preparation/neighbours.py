"""All pairs of vectors whose cosine similarity reaches a threshold, exactly, tile by tile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from franca.data.preparation.errors import PreparationError
from franca.data.preparation.vectors import Embeddings, Floats, Integers
from franca.devices import choose_device

QUERIES, COLUMNS = 2048, 4096  # of a tile: what it finds has to fit into memory even if everything is alike
QUERIES_HELD = 8192  # that meet a tile of the database each time it is read
MARGIN = 1e-4  # far above the rounding of fp32 products; pairs this near to the threshold are computed again in fp64
ENGINES = ("auto", "faiss", "torch")

Candidates = tuple[Integers, Integers, Floats]  # rows, columns, similarities
Search = Callable[[Floats, Floats, float], Candidates]


@dataclass(frozen=True)
class Pairs:
    """similarity[i] of query row first[i] and database row second[i]."""

    first: Integers
    second: Integers
    similarity: np.ndarray


def choose_search(engine: str, device: str) -> Search:
    """What finds candidates: faiss on the CPU where it is installed, else torch. All give the same pairs.

    Raises PreparationError for an engine that isn't there.
    """
    installed = find_spec("faiss") is not None
    place = choose_device(device)
    if engine not in ENGINES or (engine == "faiss" and not installed):
        hint = "pip install 'franca[prepare]'" if engine == "faiss" else f"there are {', '.join(ENGINES)}"
        raise PreparationError(f"--engine {engine} can't be used: {hint}")
    if engine == "faiss" or (engine == "auto" and installed and place.type == "cpu"):
        return _with_faiss
    return lambda queries, database, threshold: _with_torch(queries, database, threshold, place)


def pairs_above(
    queries: Embeddings,
    query_rows: Integers,
    database: Embeddings,
    database_rows: Integers,
    threshold: float,
    search: Search,
    precise: bool = False,
) -> Iterator[Pairs]:
    """Every pair of the given rows with similarity >= threshold, some at a time.

    Args:
        queries, query_rows: what to look for, rows ascending. Rows of zeros match none.
        database, database_rows: where, rows ascending.
        threshold: least cosine similarity, above 0.
        search: what choose_search gave.
        precise: similarities are fp64 sums, the same whatever found the pair; else only near the threshold.
    """
    for begin in range(0, len(query_rows), QUERIES_HELD):
        held = query_rows[begin : begin + QUERIES_HELD]
        vectors = queries.rows(held)
        for start in range(0, len(database_rows), COLUMNS):
            columns = database_rows[start : start + COLUMNS]
            tile = database.rows(columns)
            for first in range(0, len(held), QUERIES):
                part = slice(first, first + QUERIES)
                candidates = search(vectors[part], tile, threshold - MARGIN)
                yield _verified(vectors[part], held[part], tile, columns, threshold, candidates, precise)


def _verified(
    query: Floats, rows: Integers, tile: Floats, columns: Integers, threshold: float, found: Candidates, precise: bool
) -> Pairs:
    """Pairs of a tile. Those near the threshold are decided by one sum in fp64, whatever found them."""
    row, column, similarity = found
    exact = similarity.astype(np.float64)
    near = np.arange(len(row)) if precise else np.flatnonzero(exact < threshold + MARGIN)
    for start in range(0, len(near), QUERIES):
        some = near[start : start + QUERIES]
        exact[some] = np.sum(query[row[some]].astype(np.float64) * tile[column[some]], axis=1)
    reached = exact >= threshold
    return Pairs(rows[row[reached]], columns[column[reached]], exact[reached])


def _with_faiss(queries: Floats, database: Floats, threshold: float) -> Candidates:
    import faiss

    index: Any = faiss.IndexFlatIP(database.shape[1])
    index.add(database)
    ends, similarity, column = index.range_search(queries, threshold)
    row = np.repeat(np.arange(len(queries), dtype=np.int64), np.diff(ends).astype(np.int64))
    return row, column.astype(np.int64), similarity


def _with_torch(queries: Floats, database: Floats, threshold: float, device: torch.device) -> Candidates:
    first, second = (torch.from_numpy(matrix).to(device) for matrix in (queries, database))
    similarity = first @ second.T
    row, column = (similarity >= threshold).nonzero(as_tuple=True)
    return row.cpu().numpy(), column.cpu().numpy(), similarity[row, column].cpu().numpy()
