"""What every data set of the evaluation offers: its layout on disk, its splits, and images with labels or masks.

Legend: H, W height and width of an image, N images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from franca.data.sources import Source
from franca.eval.errors import EvalError

VOID = 255  # a pixel of a mask that counts nowhere
Role = Literal["train", "test"]


class SegmentationSource(Source, Protocol):
    """Images with a class number for every pixel; `labels` is None."""

    def mask(self, index: int) -> Tensor:
        """(H, W) uint8, as large as `load` of the same number: class numbers, VOID where nothing counts.

        Raises EvalError for a mask that can't be read, has another size than its image or holds an unknown value, and
        UnreadableImage where the image itself can't be read.
        """
        ...


class WrongLayout(EvalError):
    """A folder that doesn't look as its layout says; raised by readers, completed with the tree that was expected."""


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk, and who reads it.

    Attributes:
        build: (folder, split) -> its images. Raises WrongLayout.
        splits: all that can be asked for.
        train, test: those that a protocol learns from and is scored on; train is "" for sets that only test.
        expected: the tree that the folder must show, for people.
        choose: where the splits are what the folder holds: (folder, role) -> the one to use.
        mean_per_class: its score is the mean of the accuracies of the classes.
    """

    kind: Literal["classification", "segmentation"]
    build: Callable[[Path, str], Source]
    splits: tuple[str, ...]
    train: str
    test: str
    expected: str
    choose: Callable[[Path, Role], str] | None = None
    mean_per_class: bool = False

    def split_for(self, role: Role, path: Path) -> str:
        """The split that serves as training or test set unless another is named."""
        if self.choose:
            return self.choose(path, role)
        return self.train if role == "train" else self.test


@dataclass(frozen=True)
class OpenedSplit:
    """One split of one data set."""

    name: str  # of the layout
    split: str
    source: Source
    hash: str  # of names, labels and file sizes; not of the place on disk
    mean_per_class: bool = False
    images_hash: str = ""  # of names and sizes of the images alone: sets that label them otherwise share it; "": hash

    def changed(self, source: Source, about: str) -> "OpenedSplit":
        """The split with other images, or the same ones changed, which ``about`` tells from all others."""
        images = f"{self.images_hash} {about}" if self.images_hash else ""
        return replace(self, source=source, hash=f"{self.hash} {about}", images_hash=images)

    @property
    def candidates(self) -> list[int] | None:
        """Class numbers that predictions are restricted to; None: all."""
        found: list[int] | None = getattr(self.source, "candidates", None)
        return found

    @property
    def label_sets(self) -> list[list[int]] | None:
        """For each image all class numbers that are right, where one may have several (ReaL)."""
        found: list[list[int]] | None = getattr(self.source, "label_sets", None)
        return found


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, for errors: "a, b, c …"."""
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")


def need(path: Path) -> Path:
    """The path itself. Raises WrongLayout unless it exists."""
    if not path.exists():
        raise WrongLayout(f"there is no {path}")
    return path


def inside(path: Path, *folders: str) -> Path:
    """The first of these folders that lies in ``path``; else the path itself, which may be it."""
    return next((path / folder for folder in folders if (path / folder).is_dir()), path)
