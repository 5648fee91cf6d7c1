"""The images below a folder; a large listing is kept, and only folders that have changed are read again.

Adding, removing or renaming a file changes the modification time of its folder, and that is what is compared: one
question per folder instead of one per file.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from franca.data.cache import keep, mark, recall
from franca.data.decode import EXTENSIONS
from franca.data.errors import DataError

KEPT_FROM = 100_000  # images: smaller folders are listed in less than a second
SETTLED = 2_000_000_000  # nanoseconds: a change soon after the last one may leave the time as it was


class Listing(NamedTuple):
    """One folder: when it was last changed (nanoseconds), its images and its folders, by name."""

    changed: int
    images: list[str]
    folders: list[str]


def list_images(root: str) -> list[str]:
    """Paths relative to root of all images at any depth, sorted. Hidden files and folders are left out.

    Links are followed; a folder that is reached twice is read once.
    """
    name = f"folder-{mark(os.path.realpath(root), EXTENSIONS)}"
    known = _recall_listings(name)
    listings: dict[str, Listing] = {}
    started = time.time_ns()
    for folder, listing in _walk(root, known):
        listings[folder] = listing
    found = sorted(os.path.join(folder, name) for folder, listing in listings.items() for name in listing.images)
    settled = {folder: item for folder, item in listings.items() if 0 <= item.changed < started - SETTLED}
    if len(found) >= KEPT_FROM and settled != known:
        _keep_listings(name, settled)
    return found


def _walk(root: str, known: dict[str, Listing]) -> Iterator[tuple[str, Listing]]:
    """(path relative to root, listing) of every folder, in a fixed order."""
    pending, seen = [""], set()
    while pending:
        folder = pending.pop()
        place = os.path.join(root, folder)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        listing = known.get(folder)
        if listing is None or listing.changed != status.st_mtime_ns:
            listing = _read(place, status.st_mtime_ns)
        yield folder, listing
        pending.extend(os.path.join(folder, name) for name in reversed(listing.folders))


def _read(place: str, changed: int) -> Listing:
    images, folders = [], []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    changed = -1  # what lies behind a link can change without a trace here: never known for sure
                if entry.name.lower().endswith(EXTENSIONS) and _holds(entry.is_file):
                    images.append(entry.name)
                elif _holds(entry.is_dir):
                    folders.append(entry.name)
    except PermissionError:
        raise DataError(f"the folder {place!r} may not be read: change its permissions, or move it away") from None
    return Listing(changed, images, sorted(folders))


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _recall_listings(name: str) -> dict[str, Listing]:
    found = recall(name)
    if found is None:
        return {}
    lines = [os.fsdecode(line) for line in found[0]["names"].tobytes().split(b"\0")]
    listings, place = {}, 0
    for changed, n_images, n_folders in found[0]["counts"].tolist():
        images = place + 1 + n_images
        listings[lines[place]] = Listing(changed, lines[place + 1 : images], lines[images : images + n_folders])
        place = images + n_folders
    return listings


def _keep_listings(name: str, listings: dict[str, Listing]) -> None:
    lines = [line for folder, item in listings.items() for line in (folder, *item.images, *item.folders)]
    counts = [(item.changed, len(item.images), len(item.folders)) for item in listings.values()]
    names = np.frombuffer(b"\0".join(map(os.fsencode, lines)), np.uint8)
    keep(name, {"names": names, "counts": np.array(counts, np.int64).reshape(-1, 3)}, {})
