"""Pascal VOC 2012, semantic segmentation: 20 kinds of objects and the background (Everingham et al., 2010)."""

from pathlib import Path

from franca.eval.datasets.base import Layout, WrongLayout, inside, need, some
from franca.eval.datasets.listed import MaskedImages
from franca.eval.datasets.masks import Numbering

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# trainaug: the 10,582 images of VOC and SBD (Hariharan et al., 2011) outside val, whose masks come as one folder.
LISTS = {"train": "train.txt", "trainaug": "trainaug.txt", "val": "val.txt", "trainval": "trainval.txt"}
NUMBERING = Numbering.plain(len(CLASSES))


def voc(path: Path, split: str) -> MaskedImages:
    """Images of one list with palette masks; borders and difficult objects (255) are void. Raises WrongLayout."""
    root = inside(path, "VOCdevkit/VOC2012", "VOC2012")
    masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    names = read_list(need(root / "ImageSets/Segmentation" / LISTS[split]))
    check_files(root / "JPEGImages", [f"{name}.jpg" for name in names])
    check_files(root / masks, [f"{name}.png" for name in names])
    return MaskedImages(
        root,
        [f"JPEGImages/{name}.jpg" for name in names],
        [f"{masks}/{name}.png" for name in names],
        CLASSES,
        NUMBERING.read,
    )


def read_list(file: Path) -> list[str]:
    """Names of images, one a line; of "/JPEGImages/a.jpg /SegmentationClassAug/a.png" it is "a". Raises WrongLayout."""
    lines = file.read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not names:
        raise WrongLayout(f"{file} names no image")
    return names


def check_files(folder: Path, names: list[str]) -> None:
    """Raises WrongLayout unless all files are there."""
    there = {file.name for file in need(folder).iterdir()}
    missing = [name for name in names if name not in there]
    if missing:
        raise WrongLayout(f"{len(missing)} of {len(names)} files are missing in {folder}: {some(missing)}")


VOC = Layout(
    "segmentation",
    voc,
    tuple(LISTS),
    "trainaug",
    "val",
    """\
PATH/              holds VOCdevkit/VOC2012, or is VOC2012 itself
  VOCdevkit/VOC2012/
    JPEGImages/2007_000032.jpg
    SegmentationClass/2007_000032.png       palette PNG, 255 = border
    SegmentationClassAug/2007_000032.png    split trainaug only: the masks of SBD, one number per pixel
    ImageSets/Segmentation/train.txt, val.txt, trainval.txt; trainaug.txt for trainaug""",
)
