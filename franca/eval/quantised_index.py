"""Approximate neighbours for tens of millions of rows: faiss finds candidates in compressed rows, which are compared
again with the rows themselves.

Rows are sorted into lists by their nearest centre, and kept as a few bytes each (inverted file with product
quantisation; Jégou et al., 2011). A search looks into some of the lists only. How much that loses is measured by
`recall` against the exact search of `franca.eval.neighbours`.
"""

import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.eval.errors import EvalError
from franca.eval.neighbours import Rows, as_rows, compare_again, nearest

LEAST_ROWS = 4096  # fewer are searched exactly in no time, and too few to train on
ROWS_PER_LIST = 64  # to train on, and for each of a code's values
ROUNDS = 10  # of k-means
DIMENSIONS_PER_BYTE = 4
CHUNK = 65_536  # rows added at once
CPU = torch.device("cpu")

Track = Callable[[Iterable[int]], Iterable[int]]


class QuantisedIndex:
    """Rows of a memory, compressed, on the CPU.

    Args:
        memory: (N, D), N at least 4096; of any floating type, maybe memory-mapped. It is read again by `nearest`.
        cosine: rows and queries are scaled to length 1.
        lists: into how many the rows are sorted; 0: the power of two next to the square root of N.
        code_bytes: for each row; 0: one for 4 dimensions. The largest divisor of D that is not above is taken.
        seed: of the rows that centres and codes are learned from.
        track: shows progress of the rows that are added.

    Raises:
        EvalError: faiss isn't installed, or too few rows.
    """

    def __init__(
        self,
        memory: Tensor | Rows,
        cosine: bool = False,
        lists: int = 0,
        code_bytes: int = 0,
        seed: int = 0,
        track: Track = iter,
    ) -> None:
        if find_spec("faiss") is None:
            raise EvalError("a quantised index needs faiss: pip install 'franca[faiss]'")
        self.memory, self.cosine = as_rows(memory, cosine), cosine
        count, width = len(self.memory), self.memory.width
        if count < LEAST_ROWS:
            raise EvalError(f"a quantised index of {count} rows: it needs {LEAST_ROWS}, and fewer are searched exactly")
        self.lists = lists or 2 ** round(math.log2(count) / 2)
        self.code_bytes = _divisor(width, code_bytes or max(8, width // DIMENSIONS_PER_BYTE))
        self._index = self._trained(width, seed)
        for start in track(range(0, count, CHUNK)):
            self._index.add(self._read(slice(start, start + CHUNK)))

    def nearest(self, queries: Tensor | Rows, k: int, probes: int = 32, candidates: int = 0) -> tuple[Tensor, Tensor]:
        """About the k rows with the largest inner product, for each query; the products are exact.

        Args:
            queries: (Q, D).
            probes: lists that are searched.
            candidates: rows that are compared again with the rows themselves; 0: 8 k.

        Returns:
            inner products (Q, k) fp32, falling, and row numbers (Q, k) int64, on the CPU.
        """
        asked, found = as_rows(queries, self.cosine), []
        count = min(len(self.memory), max(k, candidates or 8 * k))
        for start in range(0, len(asked), CHUNK):
            part = slice(start, min(start + CHUNK, len(asked)))
            found.append(self._search(asked, part, k, count, min(probes, self.lists)))
        values, index = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        return values, index

    def _search(self, asked: Rows, part: slice, k: int, count: int, probes: int) -> tuple[Tensor, Tensor]:
        queries = asked.read(part, torch.float32, CPU).numpy()
        self._index.nprobe = probes  # faiss.contrib.torch_utils, once imported, takes search's parameters away
        index = torch.from_numpy(self._index.search(queries, count)[1])
        missing = (index < 0).any(dim=1)  # the lists hold too few rows
        values, rows = compare_again(
            asked, torch.arange(part.start, part.stop), self.memory, index.clamp_min(0), k, CPU
        )
        if missing.any():
            some = Rows(tuple(each[asked.numbers(part)][missing] for each in asked.parts))
            values[missing], rows[missing] = nearest(some, self.memory, k, CPU, self.cosine)
        return values, rows

    def _trained(self, width: int, seed: int) -> Any:
        """An empty index whose centres and codes fit the rows."""
        import faiss

        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFPQ(coarse, width, self.lists, self.code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.niter, clustering.seed = ROUNDS, seed + 1
            clustering.min_points_per_centroid = 1  # else it complains on standard error
            clustering.max_points_per_centroid = ROWS_PER_LIST
        wanted = min(len(self.memory), max(LEAST_ROWS, ROWS_PER_LIST * self.lists))
        chosen = torch.randperm(len(self.memory), generator=generator("quantised index", seed))[:wanted]
        index.train(self._read(chosen.sort().values))
        return index

    def _read(self, which: slice | Tensor) -> Any:
        return self.memory.read(which, torch.float32, CPU).numpy()


def recall(found: Tensor, exact: Tensor) -> float:
    """Share of the exact neighbours (Q, k) that are among the found ones (Q, K), in percent."""
    hits = sum(int(torch.isin(wanted, row).sum()) for row, wanted in zip(found, exact, strict=True))
    return 100 * hits / exact.numel()


def _divisor(width: int, largest: int) -> int:
    return next(number for number in range(min(width, largest), 0, -1) if width % number == 0)
