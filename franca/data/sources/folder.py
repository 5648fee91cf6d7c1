"""Every image below a folder, in one fixed order."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from franca.data.decode import EXTENSIONS, read_image
from franca.data.errors import DataError, EmptyFolder, MissingFolder, UnreadableImage

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
FILES_TRIED = 100  # how many unreadable files, spread over the list, make a folder unusable


class ImageFolder:
    """The images below ``path``, at any depth, sorted by their path.

    An image is a file with one of EXTENSIONS (in either case). Hidden files and folders are left out; links are
    followed, a folder that is reached twice (a loop) is read once.
    classes, labels: names of the first-level folders, and for each image the number of its own, when there are at
    least two such folders and all images lie in them; otherwise [] and None. Folders that are all named like splits
    (train, val, test) are no classes: give the path of one of them for its labels.
    Raises MissingFolder, or EmptyFolder when no image can be read.
    """

    def __init__(self, path: str, channels: int = 3) -> None:
        path = os.path.expanduser(path)
        if not os.path.isdir(path):
            what = "is a file" if os.path.exists(path) else "does not exist"
            raise MissingFolder(f"data.path={path!r} {what}; name a folder of images")
        self.root = Path(path)
        self.channels = channels
        files = sorted(_image_files(path))
        # One block of bytes: a list of millions of strings is copied into every worker, bit by bit, as it is read.
        self._names = b"".join(map(os.fsencode, files))
        self._ends = np.cumsum([0] + [len(os.fsencode(file)) for file in files])
        self.classes, self.labels = _classes(files)
        self._check_usable()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        """Path of an image relative to the folder."""
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])

    def load(self, index: int) -> Tensor:
        """Image ``index``, (channels, H, W) uint8. Raises UnreadableImage."""
        return read_image(self.root / self.name(index), self.channels)

    def _check_usable(self) -> None:
        if len(self) == 0:
            raise EmptyFolder(f"data.path={str(self.root)!r} holds no image: no file ends in {' '.join(EXTENSIONS)}")
        reasons = []
        for index in range(0, len(self), -(-len(self) // FILES_TRIED)):
            try:
                self.load(index)
                return
            except UnreadableImage as error:
                reasons.append(f"{self.name(index)} ({error.reason})")
        raise EmptyFolder(
            f"data.path={str(self.root)!r} holds {len(self)} files that end like images, but none of the "
            f"{len(reasons)} tried can be read: {'; '.join(reasons[:3])}"
        )


def _image_files(root: str) -> Iterator[str]:
    """Paths relative to root, in no particular order."""
    pending, seen = [""], set()
    while pending:
        folder = pending.pop()
        place = os.path.join(root, folder)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(place) as entries:
                listing = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except PermissionError:
            raise DataError(f"the folder {place!r} may not be read: change its permissions, or move it away") from None
        for entry in listing:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            if entry.name.lower().endswith(EXTENSIONS) and _holds(entry.is_file):
                yield path
            elif _holds(entry.is_dir):
                pending.append(path)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _classes(files: list[str]) -> tuple[list[str], list[int] | None]:
    parts = [file.split(os.sep, 1) for file in files]
    names = sorted({part[0] for part in parts if len(part) == 2})
    if len(names) < 2 or SPLIT_NAMES.issuperset(names) or any(len(part) == 1 for part in parts):
        return [], None
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers[part[0]] for part in parts]
