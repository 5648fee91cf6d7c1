"""Millions of names as one block of bytes: a list of strings is copied into every worker, bit by bit, as it is read."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

_NO_TEXT = np.empty(0, np.uint8)


class Names:
    """Strings by number. text: (bytes,) uint8, all of them in a row; ends: (n + 1,) int64, where each one ends."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Holds these names."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        text = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(text, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def join(cls, parts: Sequence["Names"]) -> "Names":
        """All names of the parts in a row."""
        shifts = np.cumsum([0] + [int(part.ends[-1]) for part in parts])
        ends = [part.ends[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(np.concatenate([_NO_TEXT, *(part.text for part in parts)]), np.concatenate([[0], *ends]))

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self.text[self.ends[index] : self.ends[index + 1]].tobytes())

    def part(self, first: int, end: int) -> "Names":
        """Names first to end - 1."""
        return Names(self.text[self.ends[first] : self.ends[end]], self.ends[first : end + 1] - self.ends[first])

    def __len__(self) -> int:
        return len(self.ends) - 1
