"""In which order a protocol learns from images: one random order after another, for as many steps as it takes."""

import torch
from torch import Tensor

from franca.data.random_streams import generator


class Order:
    """Which of N things stand at a place of an endless row of random orders of all of them.

    The row is a function of the key alone: a continued training, another number of workers or of processes sees the
    same things at the same places.

    Args:
        count: N.
        key: what the order is for, and the seed.
    """

    def __init__(self, count: int, *key: str | int) -> None:
        self.count, self.key = count, key
        self._turn, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, first: int, length: int) -> Tensor:
        """Things at the places first … first + length - 1, (length,) int64."""
        found = []
        while length:
            turn, place = divmod(first, self.count)
            if turn != self._turn:
                self._turn, self._order = turn, torch.randperm(self.count, generator=generator(*self.key, turn))
            found.append(self._order[place : place + length])
            first, length = first + len(found[-1]), length - len(found[-1])
        return torch.cat(found)
