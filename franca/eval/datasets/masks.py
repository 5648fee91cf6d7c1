"""One mask file -> class numbers, or an error that names the file and the value in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca.eval.datasets.base import VOID
from franca.eval.errors import EvalError

VALUES = 1 << 16  # a mask may hold 16 bits per pixel


class Numbering:
    """Which class each value of a mask file stands for.

    Args:
        classes: value -> class number, 0 to 254. void: values that count nowhere.
    """

    def __init__(self, classes: Mapping[int, int], void: Iterable[int] = ()) -> None:
        self._classes = np.full(VALUES, VOID, np.uint8)
        self._known = np.zeros(VALUES, bool)
        for value in void:
            self._known[value] = True
        for value, number in classes.items():
            self._classes[value], self._known[value] = number, True

    @classmethod
    def plain(cls, count: int, first: int = 0, void: Iterable[int] = (VOID,)) -> "Numbering":
        """``count`` classes whose values are first, first + 1, …"""
        return cls({first + number: number for number in range(count)}, void)

    def read(self, file: Path) -> NDArray[np.uint8]:
        """(H, W) class numbers, VOID where nothing counts.

        Raises EvalError for a file that can't be read, that holds colours, or that holds a value without a class.
        """
        values = read_values(file)
        known = self._known[values]
        if not known.all():
            wrong = np.unique(values[~known]).tolist()
            listed = ", ".join(map(str, wrong[:5])) + (" …" if len(wrong) > 5 else "")
            raise EvalError(f"the mask {file} holds {listed}, which stands for no class ({self._said()})")
        return self._classes[values]

    def _said(self) -> str:
        """ "0 to 20 and 255 are known"."""
        known = np.flatnonzero(self._known)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        said = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
        return f"{', '.join(said)} are known"


def read_values(file: Path) -> NDArray[np.uint16]:
    """(H, W) numbers of a file with one number per pixel: grey or palette PNG, 8 or 16 bits. Raises EvalError."""
    with _opened(file) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise EvalError(f"the mask {file} holds colours ({image.mode}), not one class number per pixel")
        values = _pixels(image, file)
    if values.min(initial=0) < 0 or values.max(initial=0) >= VALUES:
        raise EvalError(f"the mask {file} holds values from {values.min()} to {values.max()}, which stand for no class")
    return values.astype(np.uint16)


def read_colours(file: Path) -> NDArray[np.uint8]:
    """(H, W, 3) of a file whose colours stand for classes. Raises EvalError."""
    with _opened(file) as image:
        _pixels(image, file)
        return np.asarray(image.convert("RGB"))


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except Exception as error:  # decoders raise nearly anything on broken files
        raise _unreadable(file, error) from error


def _pixels(image: Image.Image, file: Path) -> NDArray[np.int64]:
    try:
        return np.asarray(image).astype(np.int64)
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> EvalError:
    return EvalError(f"the mask {file} can't be read ({type(error).__name__}: {error}): unpack or copy it again")
