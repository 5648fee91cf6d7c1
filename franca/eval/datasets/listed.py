"""Images by a list of names below one folder, with labels or with masks."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from franca.data.decode import SHORT_SIDE_KEPT, read_image
from franca.data.errors import UnreadableImage
from franca.data.sources.names import Names
from franca.eval.errors import EvalError

ORIENTATION = 0x0112  # EXIF entry; from 5 on height and width change places


class ListedImages:
    """Images below ``root`` in the order of ``names``.

    Args:
        names: relative to root. labels: class number of each, or None. classes: names of the classes.
        candidates: class numbers that predictions are restricted to; None: all.
        label_sets: for each image all class numbers that are right, where one may have several.
        validation: numbers of the images that the data set itself sets apart for choosing settings; None: it doesn't.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int] | None,
        classes: Sequence[str],
        candidates: Sequence[int] | None = None,
        label_sets: Sequence[Sequence[int]] | None = None,
        validation: Sequence[int] | None = None,
    ) -> None:
        self.root, self._names = root, Names.of(names)
        self.labels = None if labels is None else list(labels)
        self.classes = list(classes)
        self.candidates = None if candidates is None else list(candidates)
        self.label_sets = None if label_sets is None else [list(labels) for labels in label_sets]
        self.validation = None if validation is None else list(validation)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path of an image relative to the folder."""
        return self._names[index]

    def load(self, index: int) -> Tensor:
        """Image ``index``, (3, H, W) uint8. Raises UnreadableImage."""
        return read_image(self.root / self.name(index))

    def image_files(self) -> Iterator[str]:
        """Paths of all files that the images are read from."""
        return below(self.root, self._names)

    def files(self) -> Iterator[str]:
        """Paths of all files that decide what the set holds, where its lists don't: those of the images."""
        return self.image_files()


class MaskedImages(ListedImages):
    """Images below ``root`` with a mask each.

    Args:
        masks: relative to root, in the order of the images.
        read: file -> (H, W) uint8, class numbers and VOID. Raises EvalError.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        masks: Sequence[str],
        classes: Sequence[str],
        read: Callable[[Path], NDArray[np.uint8]],
    ) -> None:
        super().__init__(root, names, None, classes)
        self._masks, self._read = Names.of(masks), read

    def mask(self, index: int) -> Tensor:
        """(H, W) uint8, as large as `load` of the same number: class numbers, VOID where nothing counts.

        Raises EvalError for a mask that can't be read, has another size than its image or holds an unknown value, and
        UnreadableImage where the image itself can't be read.
        """
        file = self.root / self._masks[index]
        mask = torch.from_numpy(self._classes_of(index, file))
        size = self._size(index)
        if mask.shape != size:
            raise EvalError(
                f"the mask {file} has {mask.shape[1]} x {mask.shape[0]} pixels, its image {self.name(index)} "
                f"{size[1]} x {size[0]}: they must be the same"
            )
        if min(size) < 2 * SHORT_SIDE_KEPT:
            return mask
        shrunk = self.load(index).shape[-2:]  # `load` shrinks very large images
        return F.resize(mask[None], list(shrunk), interpolation=InterpolationMode.NEAREST_EXACT)[0]

    def files(self) -> Iterator[str]:
        """Paths of all files that the images and their masks are read from."""
        return chain(super().files(), below(self.root, self._masks))

    def _classes_of(self, index: int, file: Path) -> NDArray[np.uint8]:
        """(H, W) class numbers of a mask file."""
        return self._read(file)

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, upright, from its header."""
        file = self.root / self.name(index)
        if file.suffix.lower() == ".npy":
            _, height, width = self.load(index).shape
            return height, width
        try:
            with Image.open(file) as image:
                width, height = image.size
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception as error:  # decoders raise nearly anything on broken files
            raise UnreadableImage(str(file), f"{type(error).__name__}: {error}") from error
        return (width, height) if turned else (height, width)


def below(root: Path, names: Names) -> Iterator[str]:
    """Their paths, quickly: there may be a million."""
    start = f"{root}{os.sep}"
    return (start + names[index] for index in range(len(names)))
