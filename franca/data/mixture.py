"""Several sources as one: each sample of the run is dealt to one of them, in fixed proportions."""

from collections.abc import Sequence

import numpy as np

from franca.data.random_streams import shuffled
from franca.data.sources import Source
from franca.data.sources.shards import Shards

SLOTS = 1 << 16  # samples after which every part has had exactly its share


class Mixture:
    """Sources with weights.

    Of any SLOTS samples in a row that start at a multiple of SLOTS, each part gets its share exactly (rounded to whole
    samples, at least one), at places that are a function of the seed. So each part shows all its images before it
    repeats one, as it does alone.
    Raises ValueError for weights that make no shares.
    """

    def __init__(self, parts: Sequence[Source | Shards], weights: Sequence[float]) -> None:
        if len(parts) != len(weights) or not parts or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights {list(weights)} for {len(parts)} sources: give each a number above 0")
        self.classes: list[str] = []
        self.labels: list[int] | None = None
        self.parts = list(parts)
        self.quotas = _quotas(weights)
        self._edges = np.cumsum(self.quotas)

    def deal(self, seed: int, sample: int) -> tuple[int, int]:
        """Part of a sample, and how many samples of that part come before it in a fixed order: each number once."""
        if len(self.parts) == 1:
            return 0, sample
        turn, place = divmod(sample, SLOTS)
        slot = shuffled(place, SLOTS, "mixture", seed, turn)
        part = int(np.searchsorted(self._edges, slot, side="right"))
        return part, turn * int(self.quotas[part]) + slot - int(self._edges[part] - self.quotas[part])


def describe(source: "Source | Shards | Mixture") -> str:
    """One line on what there is, for a person."""
    if isinstance(source, Mixture):
        shares = zip(source.quotas / SLOTS, source.parts, strict=True)
        return "mixture of " + ", ".join(f"{share:.2%} {describe(part)}" for share, part in shares)
    if isinstance(source, Shards):
        return f"{len(source.shards)} shards in {source.n_streams} streams"
    return f"{len(source)} images"


def _quotas(weights: Sequence[float]) -> np.ndarray:
    """Whole numbers that add up to SLOTS, by largest remainders; at least 1 each."""
    exact = np.array(weights, np.float64) / np.sum(weights) * SLOTS
    quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
    order = np.argsort(quotas - exact, kind="stable")  # the most missing first
    missing = SLOTS - int(quotas.sum())
    for number in range(abs(missing)):
        quotas[order[number % len(order)] if missing > 0 else np.argmax(quotas)] += 1 if missing > 0 else -1
    return quotas
