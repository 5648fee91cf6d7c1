"""The images of shards as endless streams, each of which can go on from where it stood.

In epoch e the shards are permuted by (seed, e) and dealt to V streams: stream v reads the shards at places v, v + V, …
of the permutation. It reads images in blocks of ``buffer``, shuffles each block by (seed, v, block) and gives them one
by one. So where it stands is told by six numbers: what was read before the block need not be read again, and what was
already given of the block is left out. A stream belongs to one rank at a time; which one changes nothing in it.
"""

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import astuple, dataclass, field, fields, replace
from itertools import islice

from franca.data.batch import SkippedFile
from franca.data.errors import TooManyBrokenFiles
from franca.data.random_streams import shuffled, stream_seed
from franca.data.sources.shard_reader import ShardImage, read_shard
from franca.data.sources.shards import Shards

SHARDS_BEFORE_VERDICT = 50  # or as many as there are


@dataclass
class Position:
    """Where a stream stands.

    given: images so far. epoch, place, byte: where its block starts: in which pass over the shards, in the how many-th
    shard of the stream's own, and where in it. block: number of the block. taken: images already given of it.
    """

    given: int = 0
    epoch: int = 0
    place: int = 0
    byte: int = 0
    block: int = 0
    taken: int = 0

    def row(self) -> list[int]:
        """The numbers, as a row of the saved table."""
        return list(astuple(self))


POSITION_FIELDS = len(fields(Position))


@dataclass
class RawImage:
    """An image file that is not decoded yet, and what was skipped on the way to it."""

    name: str
    content: bytes
    part: int
    skipped: list[SkippedFile] = field(default_factory=list)


class ShardTally:
    """How many shards were opened and held nothing. More than half of them stop the run: their place must be wrong."""

    def __init__(self, shards: Shards) -> None:
        self.path = shards.path
        self.before_verdict = min(SHARDS_BEFORE_VERDICT, len(shards.shards))
        self.opened = 0
        self.empty: list[SkippedFile] = []

    def add(self, shard: str, reason: str) -> None:
        """Takes note of a shard; reason: why it gave nothing, or ""."""
        self.opened += 1
        self.empty += [SkippedFile(shard, reason)] if reason else []
        if self.opened >= self.before_verdict and len(self.empty) * 2 > self.opened:
            first = "; ".join(f"{file.name} ({file.reason})" for file in self.empty[:3])
            raise TooManyBrokenFiles(
                f"data.path={self.path!r}: {len(self.empty)} of {self.opened} shards opened hold no image that can be "
                f"read, so something is wrong with all of them. The first: {first}"
            )


class ShardStream:
    """Stream ``number`` of the shards, from ``position`` on."""

    def __init__(
        self, shards: Shards, seed: int, number: int, position: Position, part: int, tally: ShardTally
    ) -> None:
        self.position = replace(position)
        self._shards = shards
        self.number = number
        self._part = part
        self._seed = seed
        self._tally = tally
        self._cursor = replace(position)  # epoch, place and byte: what was read, which is ahead of what was given
        self._open: Generator[ShardImage, None, None] | None = None
        self._damages: list[SkippedFile] = []
        self._left: deque[ShardImage] | None = None  # of the block

    def next(self) -> RawImage:
        """The next image. Raises TooManyBrokenFiles when most shards can't be read."""
        while not self._left:
            self._load_block()
        image, damages = self._left.popleft(), self._damages
        self._damages = []
        self.position.given += 1
        self.position.taken += 1
        return RawImage(image.name, image.content, self._part, damages)

    def close(self) -> None:
        """Closes the shard that is open."""
        if self._open is not None:
            self._open.close()

    def _load_block(self) -> None:
        position = self.position
        if self._left is not None:  # the one before is given
            read = {name: getattr(self._cursor, name) for name in ("epoch", "place", "byte")}
            position = self.position = replace(position, block=position.block + 1, taken=0, **read)
        size = self._shards.buffer
        if position.block == 0:  # streams must not all read at the same time for ever
            size = 1 + stream_seed("first block", self._seed, self._part, self.number) % size
        images = list(islice(self._rest_of_pass(), size))
        key = ("buffer", self._seed, self._part, self.number, position.block)
        order = [shuffled(place, len(images), *key) for place in range(position.taken, len(images))]
        self._left = deque(images[place] for place in order)
        if position.taken:  # what was skipped was counted when the block was first read
            self._damages = []

    def _rest_of_pass(self) -> Iterator[ShardImage]:
        """What is left of the stream's shards in this epoch; at its end the cursor stands at the next one."""
        cursor, n_shards = self._cursor, len(self._shards.shards)
        while True:
            place = self.number + cursor.place * self._shards.n_streams
            if place >= n_shards:
                cursor.epoch, cursor.place = cursor.epoch + 1, 0
                return
            yield from self._rest_of_shard(shuffled(place, n_shards, "shards", self._seed, self._part, cursor.epoch))
            cursor.place, cursor.byte = cursor.place + 1, 0

    def _rest_of_shard(self, number: int) -> Iterator[ShardImage]:
        shard = self._shards.shards[number]
        if self._open is None:
            self._open = read_shard(shard, self._cursor.byte, lambda reason: self._tell(shard, reason))
        for image in self._open:
            if self._cursor.byte == 0:
                self._tally.add(shard, "")
            self._cursor.byte = image.end
            yield image
        self._open = None
        if self._cursor.byte == 0:
            reason = next((file.reason for file in self._damages if file.name == shard), "it holds no image")
            self._damages = [file for file in self._damages if file.name != shard]
            self._damages.append(SkippedFile(shard, reason, self._part, is_shard=True))
            self._tally.add(shard, reason)

    def _tell(self, shard: str, reason: str) -> None:
        self._damages.append(SkippedFile(shard, reason, self._part))


class RankStreams:
    """The streams of one rank, in turn: the next image comes from the stream that has given least.

    So all streams keep pace, and after a change of the number of ranks they fall into pace again.
    positions: stream number -> where it stands after what ``next`` has given.
    """

    def __init__(self, shards: Shards, seed: int, part: int, positions: dict[int, Position]) -> None:
        tally = ShardTally(shards)
        self._streams = [
            ShardStream(shards, seed, number, position, part, tally) for number, position in positions.items()
        ]
        self._ahead: deque[tuple[RawImage, int, Position]] = deque()

    def next(self) -> tuple[RawImage, int, Position]:
        """An image, the number of its stream, and where that stands now."""
        return self._ahead.popleft() if self._ahead else self._draw()

    def peek(self, count: int) -> list[RawImage]:
        """The next ``count`` images, which ``next`` will give all the same."""
        while len(self._ahead) < count:
            self._ahead.append(self._draw())
        return [image for image, _, _ in islice(self._ahead, count)]

    def close(self) -> None:
        """Closes the shards that are open."""
        for stream in self._streams:
            stream.close()

    def _draw(self) -> tuple[RawImage, int, Position]:
        stream = min(self._streams, key=lambda stream: stream.position.given)
        return stream.next(), stream.number, replace(stream.position)
