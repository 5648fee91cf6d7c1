"""Every image below a folder, in one fixed order."""

import os
from itertools import groupby
from pathlib import Path

from torch import Tensor

from franca.data.decode import EXTENSIONS, read_image
from franca.data.errors import EmptyFolder, MissingFolder, UnreadableImage
from franca.data.sources.listing import list_images
from franca.data.sources.names import Names

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
        files = list_images(path)
        self._names = Names.of(files)
        self.classes, self.labels = _classes(files)
        self._check_usable()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path of an image relative to the folder."""
        return self._names[index]

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


def _classes(files: list[str]) -> tuple[list[str], list[int] | None]:
    """From sorted paths: first-level names and the number of each file's own, or ([], None)."""
    names, counts = [], []
    for name, group in groupby(files, lambda file: file[: file.find(os.sep)]):
        names.append(name)
        counts.append(sum(1 for _ in group))
    if len(names) < 2 or SPLIT_NAMES.issuperset(names) or any(os.sep not in file for file in files):
        return [], None
    order = {name: number for number, name in enumerate(sorted(names))}
    return sorted(names), [label for name, count in zip(names, counts, strict=True) for label in [order[name]] * count]
