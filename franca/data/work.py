"""What a worker is asked to do: which batch to make, and the undecoded images of those sources that have no numbers.

Shards are read in the main process (in a thread of it), by one reader per rank, and decoded in the workers. So the
order does not depend on the number of workers, and where the streams stand is known exactly after every batch.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from franca.data.errors import DataError
from franca.data.mixture import Mixture
from franca.data.shard_streams import POSITION_FIELDS, Position, RankStreams, RawImage
from franca.data.sources.shards import Shards

FEWEST_CANDIDATES = 8  # images that can stand in for one that can't be decoded


@dataclass
class Work:
    """A batch to make.

    first: number of its first sample. raw: place in the batch -> image file from shards; the other places are images
    with numbers. spare: the images that come next, part by part, where the batch holds few.
    """

    first: int
    raw: dict[int, RawImage] = field(default_factory=dict)
    spare: dict[int, list[RawImage]] = field(default_factory=dict)

    def candidates(self, place: int) -> list[RawImage]:
        """The images that may stand in for the one at ``place``."""
        part = self.raw[place].part
        others = [raw for other, raw in sorted(self.raw.items()) if other != place and raw.part == part]
        return others + self.spare.get(part, [])


class StreamTable:
    """Where every stream of every part stands: one row of Position each, (streams, 6) int64."""

    def __init__(self, mixture: Mixture) -> None:
        self.shards = {n: part for n, part in enumerate(mixture.parts) if isinstance(part, Shards)}
        counts = [part.n_streams for part in self.shards.values()]
        starts = [sum(counts[:n]) for n in range(len(counts))]
        self._starts = dict(zip(self.shards, starts, strict=True))
        self.rows = torch.zeros(sum(counts), POSITION_FIELDS, dtype=torch.int64)

    def place(self, part: int, stream: int) -> int:
        """Row of a stream."""
        return self._starts[part] + stream

    def own(self, part: int, rank: int, world_size: int) -> dict[int, Position]:
        """The streams of a rank and where they stand. Raises DataError when there is none for it."""
        n_streams = self.shards[part].n_streams
        if n_streams < world_size:
            n_shards = len(self.shards[part].shards)
            advice = f"make {world_size} shards or more" if n_shards < world_size else "raise data.shards.streams"
            raise DataError(
                f"data.path={self.shards[part].path!r}: {n_shards} shards in {n_streams} streams cannot be shared by "
                f"{world_size} ranks: {advice}; best is a multiple of the ranks"
            )
        mine = range(rank, n_streams, world_size)
        return {stream: Position(*self.rows[self.place(part, stream)].tolist()) for stream in mine}

    def is_own(self, rank: int, world_size: int) -> Tensor:
        """(streams,) bool."""
        numbers = [torch.arange(part.n_streams) for part in self.shards.values()]
        return torch.cat([torch.empty(0, dtype=torch.int64), *numbers]) % world_size == rank


Given = tuple[Work, dict[int, list[int]]]


def plan(
    mixture: Mixture, table: StreamTable, seed: int, batch_size: int, first: int, rank: int, world_size: int
) -> Generator[Given, None, None]:
    """The batches of a rank without end, the first of all ranks' batches starting at sample ``first``.

    With each come the rows of the table that it changes.
    """
    streams = {
        part: RankStreams(shards, seed, part, table.own(part, rank, world_size))
        for part, shards in table.shards.items()
    }
    start = first + rank * batch_size
    try:
        while True:
            work, rows = Work(start), {}
            for place in range(batch_size if streams else 0):
                part, _ = mixture.deal(seed, start + place)
                if part in streams:
                    work.raw[place], stream, position = streams[part].next()
                    rows[table.place(part, stream)] = position.row()
            for part in {raw.part for raw in work.raw.values()}:
                there = sum(raw.part == part for raw in work.raw.values())
                if there <= FEWEST_CANDIDATES:
                    work.spare[part] = streams[part].peek(FEWEST_CANDIDATES + 1 - there)
            yield work, rows
            start += world_size * batch_size
    finally:
        for each in streams.values():
            each.close()
