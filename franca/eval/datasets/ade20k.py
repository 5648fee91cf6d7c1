"""ADE20K as the scene parsing challenge of 2016 gives it: 150 classes (Zhou et al., 2017)."""

from pathlib import Path

from franca.eval.datasets.base import Layout, WrongLayout, inside
from franca.eval.datasets.listed import MaskedImages
from franca.eval.datasets.masks import Numbering
from franca.eval.datasets.pairs import pair

CLASSES = 150
FOLDERS = {"train": "training", "val": "validation"}
NUMBERING = Numbering.plain(CLASSES, first=1, void=(0,))  # 0: others


def ade20k(path: Path, split: str) -> MaskedImages:
    """20,210 training and 2,000 validation images; "others" is void. Raises WrongLayout."""
    root = inside(path, "ADEChallengeData2016")
    folder = FOLDERS[split]
    names, masks = pair(root, root / "images" / folder, root / "annotations" / folder)
    return MaskedImages(root, names, masks, class_names(root / "objectInfo150.txt"), NUMBERING.read)


def class_names(file: Path) -> list[str]:
    """The last column of the table that comes with the data; numbers from 1 where it is missing. Raises WrongLayout."""
    if not file.is_file():
        return [str(number) for number in range(1, CLASSES + 1)]
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [row[-1].strip() for row in rows if row[0].strip().isdecimal()]
    if len(names) != CLASSES:
        raise WrongLayout(f"{file} names {len(names)} classes, not {CLASSES}")
    return names


ADE20K = Layout(
    "segmentation",
    ade20k,
    tuple(FOLDERS),
    "train",
    "val",
    """\
PATH/              holds ADEChallengeData2016, or is it
  ADEChallengeData2016/
    images/training/ADE_train_00000001.jpg
    images/validation/ADE_val_00000001.jpg
    annotations/training/ADE_train_00000001.png       0 = others, 1 to 150
    annotations/validation/ADE_val_00000001.png
    objectInfo150.txt                                 names of the classes; may be missing""",
)
