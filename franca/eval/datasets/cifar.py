"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): images of 32 x 32 pixels in a few files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets

from franca.eval.datasets.base import Layout, WrongLayout
from franca.eval.datasets.fine_grained import SPLITS, held_out, said_by


class ArrayImages:
    """Images that lie as pixels in a few files.

    pixels: (N, H, W, 3) uint8. origin: those files.
    """

    def __init__(
        self, pixels: NDArray[Any], labels: Sequence[int], classes: Sequence[str], names: list[str], origin: list[Path]
    ) -> None:
        self.pixels, self.names, self.origin = pixels, names, origin
        self.labels: list[int] | None = list(labels)
        self.classes = list(classes)
        self.validation: list[int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Split and number."""
        return self.names[index]

    def load(self, index: int) -> Tensor:
        """Image ``index``, (3, H, W) uint8."""
        return torch.from_numpy(self.pixels[index].transpose(2, 0, 1).copy())

    def image_files(self) -> Iterator[str]:
        """Paths of all files that the images are read from."""
        return map(str, self.origin)

    files = image_files  # their labels lie in the same ones


def cifar(path: Path, split: str, reader: Any) -> ArrayImages:
    """One split of either; torchvision checks the files' MD5 before it reads them. Raises WrongLayout."""
    try:
        dataset = reader(path, train=split != "test")
    except RuntimeError as error:
        raise WrongLayout(f"its files can't be read ({said_by(error)})") from error
    held = held_out(dataset.targets)
    kept = [place for place in range(len(held)) if split in ("trainval", "test") or held[place] == (split == "val")]
    half = "test" if split == "test" else "train"
    parts = dataset.test_list if split == "test" else dataset.train_list
    source = ArrayImages(
        dataset.data[kept],
        [dataset.targets[place] for place in kept],
        dataset.classes,
        [f"{half}/{place:05d}" for place in kept],
        [path / dataset.base_folder / name for name, _ in parts],
    )
    if split == "trainval":
        source.validation = [place for place, out in enumerate(held) if out]
    return source


def cifar10(path: Path, split: str) -> ArrayImages:
    """One split of CIFAR-10. Raises WrongLayout."""
    return cifar(path, split, datasets.CIFAR10)


def cifar100(path: Path, split: str) -> ArrayImages:
    """One split of CIFAR-100, its 100 fine classes. Raises WrongLayout."""
    return cifar(path, split, datasets.CIFAR100)


CIFAR10 = Layout(
    "classification",
    cifar10,
    SPLITS,
    "trainval",
    "test",
    """\
PATH/
  cifar-10-batches-py/data_batch_1 … data_batch_5, test_batch, batches.meta     the version for Python""",
)
CIFAR100 = Layout(
    "classification",
    cifar100,
    SPLITS,
    "trainval",
    "test",
    """\
PATH/
  cifar-100-python/train, test, meta     the version for Python""",
)
