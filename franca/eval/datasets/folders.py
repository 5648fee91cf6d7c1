"""Plain folders: one folder per class, or images/ and masks/ with a list of classes."""

from pathlib import Path

from franca.data.errors import DataError
from franca.data.sources import Source
from franca.data.sources.folder import ImageFolder
from franca.eval.datasets.base import VOID, Layout, Role, WrongLayout, need
from franca.eval.datasets.listed import MaskedImages
from franca.eval.datasets.masks import Numbering
from franca.eval.datasets.pairs import pair

WHOLE = "all"  # the split of a folder that isn't divided
SPLITS = ("train", "val", "test", WHOLE)
# Names under which people keep a split.
FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    WHOLE: (".",),
}
VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")


def class_folders(path: Path, split: str) -> Source:
    """Images in one folder per class. Raises WrongLayout."""
    try:
        return ImageFolder(str(_folder_of(path, split)))
    except DataError as error:
        raise WrongLayout(str(error).removeprefix("data.path=")) from error


def choose(path: Path, role: Role) -> str:
    """The split of a plain folder to use: what there is of train, or of val and test; else the whole folder."""
    wanted = ("train",) if role == "train" else ("val", "test")
    divided = [split for split in SPLITS[:-1] if any((path / name).is_dir() for name in FOLDERS[split])]
    return next((split for split in wanted if split in divided), wanted[0] if divided else WHOLE)


def masked_folder(path: Path, split: str) -> MaskedImages:
    """images/<split> and masks/<split>, the classes in classes.txt. Raises WrongLayout."""
    classes, numbering = read_classes(need(path / "classes.txt"))
    images, masks = (_folder_of(need(path / kind), split) for kind in ("images", "masks"))
    names, mask_names = pair(path, images, masks)
    return MaskedImages(path, names, mask_names, classes, numbering.read)


def choose_masked(path: Path, role: Role) -> str:
    """As `choose`, below images/."""
    return choose(path / "images", role)


def read_classes(file: Path) -> tuple[list[str], Numbering]:
    """Lines "number name", or names alone, numbered from 0. A class called void, ignore or unlabelled counts nowhere.

    255 is void in any case. Returns the names of the classes in the order of their numbers. Raises WrongLayout.
    """
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    numbered = all(line[0].isdecimal() and len(line) > 1 for line in lines)
    named = (
        {int(line[0]): " ".join(line[1:]) for line in lines}
        if numbered
        else {number: " ".join(line) for number, line in enumerate(lines)}
    )
    void = {value for value, name in named.items() if name.lower() in VOID_NAMES} | {VOID}
    values = sorted(named.keys() - void)
    if not values or len(named) < len(lines) or len(values) >= VOID:
        raise WrongLayout(
            f"{file} must list 1 to {VOID - 1} classes, one a line, as '0 sky'; it has {len(lines)} lines, "
            f"{len(named)} numbers and {len(values)} classes beside void"
        )
    return [named[value] for value in values], Numbering({value: place for place, value in enumerate(values)}, void)


def _folder_of(path: Path, split: str) -> Path:
    for name in FOLDERS[split]:
        if (path / name).is_dir():
            return path / name
    raise WrongLayout(f"there is no folder {path / FOLDERS[split][0]}")


FOLDER = Layout(
    "classification",
    class_folders,
    SPLITS,
    "train",
    "val",
    """\
PATH/
  train/           also: training
    <class>/       one folder per class, any names
      *.jpg        any image format, at any depth
  val/             also: valid, validation, test
    <class>/
without train/ and val/, the class folders of PATH itself are the split "all\"""",
    choose,
)

SEGMENTATION_FOLDER = Layout(
    "segmentation",
    masked_folder,
    SPLITS,
    "train",
    "val",
    """\
PATH/
  classes.txt      one class a line: "0 sky", "1 building" …; one called void (or 255) counts nowhere
  images/
    train/*.jpg    any image format; val/ and test/ likewise
  masks/
    train/*.png    the same names; one class number per pixel""",
    choose_masked,
)
