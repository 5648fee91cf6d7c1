"""What lies where in a folder of tar files: read once from their headers, kept, and renewed where a tar has changed."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from franca.data.cache import cache_folder, keep, mark, recall
from franca.data.decode import EXTENSIONS
from franca.data.sources.names import Names
from franca.data.sources.tar_members import is_image, open_archive, walk
from franca.hub.download import locked

logger = logging.getLogger(__name__)

READERS = 8  # tars read at a time: on a file system over a network most of the time is waiting
SECONDS_BETWEEN_LINES = 20.0
NAMED = 5  # damaged tars that the log names


class Tar(NamedTuple):
    """A tar file as it was when it was read: name relative to the folder, bytes, modification time in nanoseconds."""

    name: str
    size: int
    changed: int


class _Contents(NamedTuple):
    """The images of one tar, in the order of the file, and what is wrong with it ("" for nothing)."""

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    damage: str


@dataclass
class TarIndex:
    """Images of all tars in a row. Arrays may be mapped from disk.

    tars: the files; starts: (tars + 1,) number of each one's first image; offsets, sizes: (images,) bytes, of the
    image in its tar; names: of the images. damages: tar number -> what could not be read of it.
    """

    tars: list[Tar]
    starts: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: Names
    damages: dict[int, str]

    def __len__(self) -> int:
        return len(self.offsets)

    def tar_of(self, index: int) -> int:
        """Number of the tar that holds image ``index``."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def damage_log(self) -> str:
        """The first damaged tars with what is wrong, for a message."""
        first = list(self.damages.items())[:NAMED]
        return "; ".join(f"{self.tars[number].name} ({damage})" for number, damage in first)


def index_tars(root: str, names: Sequence[str]) -> TarIndex:
    """The index of the tars ``names`` below root, from the cache where it is there and still true.

    Of several processes one reads the headers while the others wait for what it keeps.
    """
    tars = [_describe(root, name) for name in names]
    entry = f"tars-{mark(os.path.realpath(root), EXTENSIONS)}"
    known = _recall_index(entry)
    if known is None or known.tars != tars:
        with _alone(entry):
            known = _recall_index(entry)
            if known is None or known.tars != tars:
                index = _read_all(root, tars, known)
                _keep_index(entry, index)
                kept = _recall_index(entry)
                known = kept if kept and kept.tars == tars else index  # better mapped than held
    if known.damages:
        logger.warning("%d of %d tars are damaged: %s", len(known.damages), len(tars), known.damage_log())
    return known


def _describe(root: str, name: str) -> Tar:
    try:
        status = os.stat(os.path.join(root, name))
    except OSError:  # a link to nowhere: reading it says so
        return Tar(name, -1, -1)
    return Tar(name, status.st_size, status.st_mtime_ns)


@contextmanager
def _alone(entry: str) -> Iterator[None]:
    with ExitStack() as stack:
        with suppress(OSError):  # keeping the index will fail as well, and tell
            cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache_folder() / entry))
        yield


def _read_all(root: str, tars: list[Tar], known: TarIndex | None) -> TarIndex:
    """Reads the headers of the tars that ``known`` doesn't hold as they are."""
    places = {tar: number for number, tar in enumerate(known.tars)} if known else {}
    new = [tar for tar in tars if tar not in places]
    logger.info("reading the headers of %d tars in %s, once", len(new), root)
    with ThreadPoolExecutor(READERS) as pool:
        read = iter(_with_progress(pool.map(lambda tar: _read(Path(root, tar.name)), new), len(new)))
        contents = [_slice(known, places[tar]) if known and tar in places else next(read) for tar in tars]
    starts = np.cumsum([0] + [len(item.offsets) for item in contents])
    return TarIndex(
        tars=tars,
        starts=starts,
        offsets=np.concatenate([item.offsets for item in contents]),
        sizes=np.concatenate([item.sizes for item in contents]),
        names=Names.join([item.names for item in contents]),
        damages={number: item.damage for number, item in enumerate(contents) if item.damage},
    )


def _with_progress(contents: Iterator[_Contents], total: int) -> Iterator[_Contents]:
    said = time.monotonic()
    images = 0
    for number, item in enumerate(contents, 1):
        images += len(item.offsets)
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            logger.info("%d of %d tars, %d images", number, total, images)
        yield item


def _read(path: Path) -> _Contents:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    damages: list[str] = []
    try:
        with path.open("rb") as file, open_archive(file, seekable=True) as archive:
            end = os.fstat(file.fileno()).st_size
            for member in walk(archive, damages.append):
                if is_image(member) and member.offset_data + member.size <= end:
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
    except Exception as error:  # a file that is no tar, or may not be read
        damages.append(f"{type(error).__name__}: {error}")
    if not names and not damages:
        damages.append("it holds no image")
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return _Contents(Names.of(names), offsets, sizes, "; ".join(damages[:NAMED]))


def _slice(index: TarIndex, tar: int) -> _Contents:
    first, end = int(index.starts[tar]), int(index.starts[tar + 1])
    names, damage = index.names.part(first, end), index.damages.get(tar, "")
    return _Contents(names, index.offsets[first:end], index.sizes[first:end], damage)


def _recall_index(entry: str) -> TarIndex | None:
    found = recall(entry)
    if found is None:
        return None
    arrays, notes = found
    names = Names(arrays["text"], arrays["ends"])
    damages = {int(number): damage for number, damage in notes["damages"].items()}
    tars = [Tar(*tar) for tar in notes["tars"]]
    return TarIndex(tars, arrays["starts"], arrays["offsets"], arrays["sizes"], names, damages)


def _keep_index(entry: str, index: TarIndex) -> None:
    arrays = {
        "starts": index.starts,
        "offsets": index.offsets,
        "sizes": index.sizes,
        "text": index.names.text,
        "ends": index.names.ends,
    }
    keep(entry, arrays, {"tars": index.tars, "damages": index.damages})
