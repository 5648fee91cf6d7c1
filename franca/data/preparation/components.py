"""Connected components of a graph whose edges arrive in any order."""

import numpy as np

from franca.data.preparation.vectors import Integers


class Components:
    """Union-find over the numbers 0 … n-1 with whole arrays at a time; 8 bytes for each.

    A component is known by its least member, so nothing depends on the order of the edges.
    """

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n, dtype=np.int64)

    def roots(self, numbers: Integers) -> Integers:
        """(n,) -> (n,): the least member of each number's component."""
        found = self._parent[numbers]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                self._parent[numbers] = found
                return found
            found = above

    def join(self, first: Integers, second: Integers) -> Integers:
        """Connect first[i] with second[i]. Returns edges (m, 2) that have the same effect, one for each join."""
        made: list[Integers] = []
        while True:
            first, second = self.roots(first), self.roots(second)
            apart = first != second
            if not apart.any():
                return np.concatenate(made) if made else np.empty((0, 2), np.int64)
            first, second = first[apart], second[apart]
            low, high = np.minimum(first, second), np.maximum(first, second)
            # A root with several lower neighbours joins the least of them, and the others in the next round.
            np.minimum.at(self._parent, high, low)
            joined = np.unique(high)
            made.append(np.stack([joined, self._parent[joined]], axis=1))
