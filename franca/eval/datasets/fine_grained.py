"""Splits of the fine-grained sets: the same four for all, as SimCLR and DINOv2 use them.

trainval is what is learned from at last, and says which of its images are for validation; train and val are its two
parts, for choosing settings; test is scored. Where a set names no validation images itself, every fifth image of each
class is one.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from franca.eval.datasets.base import WrongLayout
from franca.eval.datasets.listed import ListedImages

SPLITS = ("train", "val", "trainval", "test")
HELD_OUT = 5

Examples = tuple[list[str], list[int], list[str]]  # paths of images, their class numbers, names of the classes
Read = Callable[[Path, str], Examples]


def held_out(labels: Sequence[int]) -> list[bool]:
    """Whether each image is for validation: every fifth of its class."""
    seen: dict[int, int] = defaultdict(int)
    result = []
    for label in labels:
        seen[label] += 1
        result.append(seen[label] % HELD_OUT == 0)
    return result


def listed(path: Path, split: str, read: Read, folder: str, own_val: bool) -> ListedImages:
    """One split of a set whose images are files.

    Args:
        read: (root, split) -> examples.
        own_val: the set has train, val and test; else ``read`` is asked for trainval and test alone.
        folder: where the set lies in ``path``; ``path`` may also be that folder itself.

    Raises:
        WrongLayout: the files can't be read.
    """
    path = _around(path, Path(folder).parts)
    if split == "test" or not own_val:
        files, labels, classes = _examples(read, path, "test" if split == "test" else "trainval")
        if split == "test":
            return _source(path, files, labels, classes)
        held = held_out(labels)
        if split == "trainval":
            return _source(path, files, labels, classes, [place for place, out in enumerate(held) if out])
        kept = [place for place, out in enumerate(held) if out == (split == "val")]
        return _source(path, [files[place] for place in kept], [labels[place] for place in kept], classes)
    if split != "trainval":
        return _source(path, *_examples(read, path, split))
    files, labels, classes = _examples(read, path, "train")
    more, more_labels, _ = _examples(read, path, "val")
    validation = range(len(files), len(files) + len(more))
    return _source(path, files + more, labels + more_labels, classes, validation)


def _around(path: Path, folder: tuple[str, ...]) -> Path:
    """The folder that holds ``folder``, from its own path or from one inside it."""
    ends = [count for count in range(len(folder) + 1) if path.parts[len(path.parts) - count :] == folder[:count]]
    roots = [Path(*path.parts[: len(path.parts) - count]) for count in ends]
    return next((root for root in roots if root.joinpath(*folder).is_dir()), path)


def _examples(read: Read, path: Path, split: str) -> Examples:
    try:
        files, labels, classes = read(path, split)
    except ImportError as error:
        raise WrongLayout(
            f"this set is read with scipy, which can't be imported ({error}): pip install 'franca[eval]'"
        ) from error
    except RuntimeError as error:
        raise WrongLayout(f"its files can't be read ({said_by(error)})") from error
    absent = [file for file in files[:1] + files[-1:] if not Path(file).is_file()]
    if absent or not files:
        raise WrongLayout(f"its lists name {absent[0]}, which isn't there" if files else "its lists name no image")
    return files, labels, classes


def _source(
    path: Path, files: list[str], labels: list[int], classes: list[str], validation: Sequence[int] | None = None
) -> ListedImages:
    names = [str(Path(file).relative_to(path)) for file in files]
    return ListedImages(path, names, labels, classes, validation=validation)


def said_by(error: Exception) -> str:
    """What torchvision says, without the advice that doesn't apply here."""
    return str(error).replace(" You can use download=True to download it", "")
