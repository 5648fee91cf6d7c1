"""ImageNet-1K (Russakovsky et al., 2015): 1000 classes, numbered by their WordNet names (wnids) in sorted order."""

import csv
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from franca.data.sources.listing import list_images
from franca.eval.datasets.base import Layout, WrongLayout, inside, need, some
from franca.eval.datasets.listed import ListedImages

SPLITS = ("train", "val")
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
KAGGLE = "ILSVRC/Data/CLS-LOC"


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 wnids; the place of each is its class number."""
    return tuple((files("franca.eval.datasets") / "imagenet_wnids.txt").read_text(encoding="utf-8").split())


def imagenet(path: Path, split: str) -> ListedImages:
    """Images of train/ or val/. Raises WrongLayout."""
    folder = need(inside(path, KAGGLE) / split)
    names = list_images(str(folder))
    flat = [name for name in names if "/" not in name]
    if split == "val" and names and len(flat) == len(names):
        return ListedImages(folder, names, _flat_labels(path, names), wnids())
    return ListedImages(folder, names, by_wnid(folder, names), wnids())


def by_wnid(folder: Path, names: Sequence[str]) -> list[int]:
    """Class numbers of images that lie in one folder per wnid. Raises WrongLayout."""
    number_of = {wnid: number for number, wnid in enumerate(wnids())}
    outside = [name for name in names if name.partition("/")[0] not in number_of]
    if not names or outside:
        found = f"{len(outside)} images in no folder of one of the 1000 wnids: {some(outside)}" if names else "no image"
        raise WrongLayout(f"{folder} holds {found}")
    return [number_of[name.partition("/")[0]] for name in names]


def val_number(name: str) -> int:
    """1 to 50,000, from a name such as "n01440764/ILSVRC2012_val_00000293.JPEG". Raises WrongLayout."""
    match = VAL_NAME.fullmatch(Path(name).name)
    if not match:
        raise WrongLayout(
            f"the image {name!r} isn't called as those of the validation set, ILSVRC2012_val_00000001.JPEG"
        )
    return int(match[1])


def _flat_labels(path: Path, names: Sequence[str]) -> list[int]:
    """Class numbers of validation images in one folder, from the first list of truths that is there."""
    for file, read in TRUTHS.items():
        if (path / file).is_file():
            truth = read(path / file)
            missing = [name for name in names if val_number(name) not in truth]
            if missing:
                raise WrongLayout(f"{path / file} says nothing of {len(missing)} images: {some(missing)}")
            return [truth[val_number(name)] for name in names]
    raise WrongLayout(f"val/ holds images without wnid folders, and there is none of {', '.join(TRUTHS)} in {path}")


def _devkit(file: Path) -> dict[int, int]:
    """The devkit numbers classes in its own way; meta.mat beside the list says which wnid each number is."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise WrongLayout(f"{file} is read with scipy, which isn't installed: pip install 'franca[eval]'") from error
    synsets = loadmat(str(need(file.with_name("meta.mat"))), squeeze_me=True)["synsets"]
    number_of = {int(number): wnid for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    places = {wnid: place for place, wnid in enumerate(wnids())}
    lines = file.read_text(encoding="utf-8").split()
    return {image: places[number_of[int(line)]] for image, line in enumerate(lines, 1)}


def _kaggle(file: Path) -> dict[int, int]:
    """Rows "ILSVRC2012_val_00048981,n03995372 85 1 499 272 …"."""
    places = {wnid: place for place, wnid in enumerate(wnids())}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(lines)]
    return {val_number(f"{image}.JPEG"): places[wnid] for image, wnid in rows}


def _caffe(file: Path) -> dict[int, int]:
    """Lines "ILSVRC2012_val_00000001.JPEG 65", whose numbers follow the sorted wnids."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {val_number(name): int(number) for name, number in lines}


TRUTHS: dict[str, Callable[[Path], dict[int, int]]] = {
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": _devkit,
    "LOC_val_solution.csv": _kaggle,
    "val.txt": _caffe,
}

IMAGENET = Layout(
    "classification",
    imagenet,
    SPLITS,
    "train",
    "val",
    """\
PATH/              or ILSVRC/Data/CLS-LOC/ in it
  train/n01440764/n01440764_18.JPEG           one folder per wnid (a subset of them does)
  val/n01440764/ILSVRC2012_val_00000293.JPEG  the same
or val/ILSVRC2012_val_00000001.JPEG … without folders, and in PATH one of
  ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt, meta.mat
  LOC_val_solution.csv
  val.txt                                     lines "ILSVRC2012_val_00000001.JPEG 65\"""",
)
