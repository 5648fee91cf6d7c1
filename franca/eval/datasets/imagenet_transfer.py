"""Test sets for classifiers of ImageNet-1K, with its class numbers: -V2, -A, -R, Sketch and ReaL."""

import json
from functools import partial
from pathlib import Path

from franca.data.sources.listing import list_images
from franca.eval.datasets.base import Layout, Role, WrongLayout, inside, need
from franca.eval.datasets.imagenet import KAGGLE, by_wnid, val_number, wnids
from franca.eval.datasets.listed import ListedImages

V2_VARIANTS = ("matched-frequency", "threshold0.7", "top-images")  # the first is the one that papers report
SUBSET = 200  # classes of -A and of -R


def imagenet_v2(path: Path, split: str) -> ListedImages:
    """One of the three variants of Recht et al. (2019); folders are class numbers. Raises WrongLayout."""
    folder = path if split in path.name else path / f"imagenetv2-{split}-format-val"
    names = list_images(str(need(folder)))
    numbers = [name.partition("/")[0] for name in names]
    wrong = sorted({number for number in numbers if not number.isdecimal() or int(number) >= len(wnids())})
    if wrong or not names:
        raise WrongLayout(f"{folder} must hold folders 0 to 999 with images" + (f", not {wrong[0]!r}" if wrong else ""))
    return ListedImages(folder, names, [int(number) for number in numbers], wnids())


def choose_v2(path: Path, role: Role) -> str:
    """The variant that the folder is called after; else the first."""
    return next((variant for variant in V2_VARIANTS if variant in path.name), V2_VARIANTS[0])


def subset(path: Path, split: str, name: str) -> ListedImages:
    """-A and -R (Hendrycks et al., 2021): 200 classes, and only these can be predicted. Raises WrongLayout."""
    folder = inside(path, name)
    names = list_images(str(folder))
    labels = by_wnid(folder, names)
    candidates = sorted(set(labels))
    if len(candidates) != SUBSET:
        raise WrongLayout(f"{folder} holds images of {len(candidates)} wnids, not {SUBSET}: unpack it again")
    return ListedImages(folder, names, labels, wnids(), candidates=candidates)


def sketch(path: Path, split: str) -> ListedImages:
    """ImageNet-Sketch (Wang et al., 2019): 1000 classes. Raises WrongLayout."""
    folder = inside(path, "sketch", "ImageNet-Sketch")
    names = list_images(str(folder))
    return ListedImages(folder, names, by_wnid(folder, names), wnids())


def real(path: Path, split: str) -> ListedImages:
    """ReaL (Beyer et al., 2020): the validation images, each with all labels that are right.

    Images without any stay, so that the features of the validation set serve, and don't count. labels: the first of
    each set, -1 where there is none. Raises WrongLayout.
    """
    folder = need(inside(path, KAGGLE) / "val")
    file = need(path / "real.json")
    try:
        sets = [[int(label) for label in labels] for labels in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise WrongLayout(f"{file} is no list of lists of class numbers ({error})") from error
    if any(not 0 <= label < len(wnids()) for labels in sets for label in labels):
        raise WrongLayout(f"{file} holds class numbers outside 0 to {len(wnids()) - 1}")
    names = list_images(str(folder))
    beyond = [name for name in names if val_number(name) > len(sets)]
    if beyond or not names:
        raise WrongLayout(f"{file} has {len(sets)} entries, {folder} holds {beyond[0] if beyond else 'no image'}")
    own = [sets[val_number(name) - 1] for name in names]
    return ListedImages(folder, names, [labels[0] if labels else -1 for labels in own], wnids(), label_sets=own)


IMAGENET_V2 = Layout(
    "classification",
    imagenet_v2,
    V2_VARIANTS,
    "",
    V2_VARIANTS[0],
    """\
PATH/              holds one or more of these three folders, or is one of them
  imagenetv2-matched-frequency-format-val/0/*.jpeg     … 999/: class numbers
  imagenetv2-threshold0.7-format-val/
  imagenetv2-top-images-format-val/""",
    choose_v2,
)


def _subset_layout(name: str) -> Layout:
    expected = f"""\
PATH/              holds {name}/, or is it
  {name}/n01498041/*.jpg     {SUBSET} folders, one per wnid"""
    return Layout("classification", partial(subset, name=name), ("test",), "", "test", expected)


IMAGENET_A = _subset_layout("imagenet-a")
IMAGENET_R = _subset_layout("imagenet-r")

IMAGENET_SKETCH = Layout(
    "classification",
    sketch,
    ("test",),
    "",
    "test",
    """\
PATH/              holds sketch/, or is it
  sketch/n01440764/sketch_0.JPEG     1000 folders, one per wnid""",
)

IMAGENET_REAL = Layout(
    "classification",
    real,
    ("val",),
    "",
    "val",
    """\
PATH/              of ImageNet-1K
  val/ILSVRC2012_val_00000001.JPEG     in wnid folders or not
  real.json                            50,000 lists of class numbers, in the order of the images""",
)
