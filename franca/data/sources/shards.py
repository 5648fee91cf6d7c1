"""Shards: tar files that are read from front to back, as webdataset and img2dataset write them."""

from dataclasses import dataclass

from franca.data.decode import decode_image
from franca.data.errors import EmptyFolder, UnreadableImage
from franca.data.sources.names import Names
from franca.data.sources.shard_names import PIPE, shard_names
from franca.data.sources.shard_reader import read_shard

SHARDS_TRIED = 20  # how many unreadable shards, spread over the list, make the list unusable
COMMANDS_TRIED = 3


@dataclass
class ShardConfig:
    """How shards are shuffled.

    streams: the shards are dealt anew to so many virtual streams in every epoch, and ranks share the streams: each rank
    reads streams / ranks shards at a time. buffer: images of a stream that are mixed with each other; a rank holds
    streams / ranks * buffer undecoded images in memory.
    """

    streams: int = 64
    buffer: int = 128

    def __post_init__(self) -> None:
        for name in ("streams", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.shards.{name}={getattr(self, name)}: choose 1 or more")


class Shards:
    """The images of all shards that ``path`` names (see shard_names), in streams instead of by number.

    Raises MissingFolder or EmptyFolder when no shard can be read.
    """

    def __init__(self, path: str, channels: int = 3, config: ShardConfig | None = None) -> None:
        config = config or ShardConfig()
        self.path = path
        self.channels = channels
        self.shards = Names.of(shard_names(path))
        self.n_streams = min(config.streams, len(self.shards))
        self.buffer = config.buffer
        self.classes: list[str] = []
        self.labels: list[int] | None = None
        self._check_usable()

    def _check_usable(self) -> None:
        reasons: list[str] = []
        tried = COMMANDS_TRIED if self.path.startswith(PIPE) else SHARDS_TRIED
        for number in range(0, len(self.shards), -(-len(self.shards) // tried)):
            shard, found = self.shards[number], len(reasons)
            images = read_shard(shard, 0, reasons.append)
            for image in images:
                try:
                    decode_image(image.content, image.name, self.channels)
                    images.close()
                    return
                except UnreadableImage as error:
                    reasons.append(error.reason)
            reasons[found:] = [f"{shard} ({(reasons[found:] or ['it holds no image'])[0]})"]
        raise EmptyFolder(
            f"data.path={self.path!r} names {len(self.shards)} shards, but no image could be read from the "
            f"{len(reasons)} tried: {'; '.join(reasons[:3])}"
        )
