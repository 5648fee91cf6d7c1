"""The photographs that scikit-image and scikit-learn carry in their own packages: images without a download."""

import importlib.util
from pathlib import Path

from torch import Tensor

from franca.data.decode import read_image
from franca.data.errors import MissingPackage

# Photographs and textures alone: no drawings, test patterns, pages of text, or second views of the same scene.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "bricks": ("skimage", "data/brick.png"),
    "cameraman": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}

HALVES = {"train": ("left",), "test": ("right",), "all": ("left", "right")}
WINDOWS_PER_AXIS = 3
WINDOW_SIDE = 2 / 3  # of the half's shorter side: neighbouring windows overlap


class SamplePhotographs:
    """Square windows of sample photographs; the label is the photograph.

    split: "train" takes windows of the left half of each photograph, "test" of the right half, so that no pixel is in
    both; "all" takes both. A half gives 3 x 3 overlapping windows, evenly spaced, whose side is two thirds of its
    shorter side.
    Raises MissingPackage without scikit-image and scikit-learn.
    """

    def __init__(self, split: str = "train", channels: int = 3) -> None:
        split = split or "train"
        if split not in HALVES:
            raise ValueError(f"data.path={split!r}: for sample photographs name a split, {', '.join(HALVES)}")
        self.channels = channels
        self.classes = list(PHOTOGRAPHS)
        self._files = [_find(package, file) for package, file in PHOTOGRAPHS.values()]
        self._photographs: dict[int, Tensor] = {}
        self._windows = [
            (label, half, row, column)
            for label in range(len(self.classes))
            for half in HALVES[split]
            for row in range(WINDOWS_PER_AXIS)
            for column in range(WINDOWS_PER_AXIS)
        ]
        self.labels: list[int] | None = [window[0] for window in self._windows]

    def __len__(self) -> int:
        return len(self._windows)

    def name(self, index: int) -> str:
        """For example "cat/left/2-0": photograph, half, row and column of the window."""
        label, half, row, column = self._windows[index]
        return f"{self.classes[label]}/{half}/{row}-{column}"

    def load(self, index: int) -> Tensor:
        """Window ``index``, (channels, side, side) uint8."""
        label, half, row, column = self._windows[index]
        if label not in self._photographs:
            self._photographs[label] = read_image(self._files[label], self.channels)
        return window(self._photographs[label], half, row, column)


def window(photograph: Tensor, half: str, row: int, column: int) -> Tensor:
    """One window of one half of a photograph, (C, H, W) -> (C, side, side)."""
    height, width = photograph.shape[-2], photograph.shape[-1] // 2
    side = round(min(height, width) * WINDOW_SIDE)
    top = (height - side) * row // (WINDOWS_PER_AXIS - 1)
    left = (width - side) * column // (WINDOWS_PER_AXIS - 1)
    if half == "right":
        left += photograph.shape[-1] - width  # the middle column of an odd width belongs to neither half
    return photograph[:, top : top + side, left : left + side]


def _find(package: str, file: str) -> Path:
    """A file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    missing = f"{package}/{file}" if spec else f"the package {package}"
    raise MissingPackage(
        f"data.source=photographs needs scikit-image and scikit-learn with their sample images, but {missing} is "
        'missing: pip install "franca[quickstart]"'
    )
