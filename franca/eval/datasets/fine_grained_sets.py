"""Nine of the fine-grained sets of the paper's Table 7 (all but CIFAR): torchvision reads those that it knows."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from torchvision import datasets

from franca.data.sources.listing import list_images
from franca.eval.datasets.base import Layout, inside, need
from franca.eval.datasets.fine_grained import SPLITS, Examples, Read, listed

CALTECH_TRAIN = 30  # images per class


def _torchvision(dataset: Any, classes: list[str] | None = None) -> Examples:
    """Paths and labels of a dataset that was made with ``loader=str``: nothing is decoded."""
    pairs = [dataset[index] for index in range(len(dataset))]
    return [path for path, _ in pairs], [int(label) for _, label in pairs], list(classes or dataset.classes)


def _food101(path: Path, split: str) -> Examples:
    return _torchvision(datasets.Food101(path, "test" if split == "test" else "train", loader=str))


def _sun397(path: Path, split: str) -> Examples:
    """The first of the ten official partitions: 19,850 images each, 50 per class."""
    files, labels, classes = _torchvision(datasets.SUN397(path, loader=str))
    root = path / "SUN397"
    label_of = {Path(file).relative_to(root).as_posix(): label for file, label in zip(files, labels, strict=True)}
    name = "Testing_01.txt" if split == "test" else "Training_01.txt"
    partition = need(
        next((place for place in (root / name, path / "Partitions" / name) if place.is_file()), root / name)
    )
    wanted = [line.strip().lstrip("/") for line in partition.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [str(root / name) for name in wanted], [label_of[name] for name in wanted], classes


def _stanford_cars(path: Path, split: str) -> Examples:
    return _torchvision(datasets.StanfordCars(path, "test" if split == "test" else "train", loader=str))


def _fgvc_aircraft(path: Path, split: str) -> Examples:
    return _torchvision(datasets.FGVCAircraft(path, split, annotation_level="variant", loader=str))


def _dtd(path: Path, split: str) -> Examples:
    return _torchvision(datasets.DTD(path, split, partition=1, loader=str))


def _oxford_pets(path: Path, split: str) -> Examples:
    dataset = datasets.OxfordIIITPet(path, split)
    return list(map(str, dataset._images)), list(dataset._labels), list(dataset.classes)


def _flowers102(path: Path, split: str) -> Examples:
    return _torchvision(datasets.Flowers102(path, split, loader=str), [str(number) for number in range(1, 103)])


def _caltech101(path: Path, split: str) -> Examples:
    """102 classes: SimCLR and DINOv2 count the background, which torchvision leaves out.

    There is no official split: 30 images of each class, evenly spaced in the order of their names, and the rest.
    """
    root = need(inside(path, "caltech101", "caltech-101") / "101_ObjectCategories")
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in list_images(str(root)):
        by_class[name.partition("/")[0]].append(name)
    files, labels = [], []
    for label, names in enumerate(by_class.values()):
        spaced = {place * len(names) // CALTECH_TRAIN for place in range(CALTECH_TRAIN)}
        wanted = [name for place, name in enumerate(names) if (place in spaced) == (split != "test")]
        files += [str(root / name) for name in wanted]
        labels += [label] * len(wanted)
    return files, labels, list(by_class)


def _cub200(path: Path, split: str) -> Examples:
    root = inside(path, "CUB_200_2011")

    def column(name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in (root / name).read_text(encoding="utf-8").splitlines() if line)

    images, labels, trains = column("images.txt"), column("image_class_labels.txt"), column("train_test_split.txt")
    classes = list(column("classes.txt").values())
    wanted = [number for number, train in trains.items() if (train.strip() == "0") == (split == "test")]
    return [str(root / "images" / images[number]) for number in wanted], [int(labels[n]) - 1 for n in wanted], classes


def _layout(read: Read, folder: str, tree: str, own_val: bool = False, mean_per_class: bool = False) -> Layout:
    build = partial(listed, read=read, folder=folder, own_val=own_val)
    expected = f"PATH/              holds {folder}/, or is it\n  {folder}/\n{tree}"
    return Layout("classification", build, SPLITS, "trainval", "test", expected, mean_per_class=mean_per_class)


# mean_per_class: as Kornblith et al. (2019) and all after them score these.
FINE_GRAINED = {
    "food101": _layout(_food101, "food-101", "    images/apple_pie/*.jpg\n    meta/train.json, test.json"),
    "sun397": _layout(
        _sun397,
        "SUN397",
        "    a/abbey/sun_*.jpg\n    ClassName.txt\n    Training_01.txt, Testing_01.txt     from Partitions.zip; or in "
        "Partitions/ beside SUN397/",
    ),
    "stanford_cars": _layout(
        _stanford_cars,
        "stanford_cars",
        "    cars_train/*.jpg\n    cars_test/*.jpg\n    devkit/cars_train_annos.mat, cars_meta.mat\n"
        "    cars_test_annos_withlabels.mat",
    ),
    "fgvc_aircraft": _layout(
        _fgvc_aircraft,
        "fgvc-aircraft-2013b",
        "    data/images/*.jpg\n    data/variants.txt\n    data/images_variant_train.txt, …_val.txt, …_test.txt",
        own_val=True,
        mean_per_class=True,
    ),
    "dtd": _layout(
        _dtd, "dtd/dtd", "    images/banded/*.jpg\n    labels/train1.txt, val1.txt, test1.txt", own_val=True
    ),
    "oxford_pets": _layout(
        _oxford_pets,
        "oxford-iiit-pet",
        "    images/*.jpg\n    annotations/trainval.txt, test.txt",
        mean_per_class=True,
    ),
    "caltech101": _layout(
        _caltech101,
        "caltech101",
        "    101_ObjectCategories/accordion/*.jpg     102 folders, BACKGROUND_Google among them",
        mean_per_class=True,
    ),
    "flowers102": _layout(
        _flowers102,
        "flowers-102",
        "    jpg/image_00001.jpg\n    imagelabels.mat, setid.mat",
        own_val=True,
        mean_per_class=True,
    ),
    "cub200": _layout(
        _cub200,
        "CUB_200_2011",
        "    images/001.Black_footed_Albatross/*.jpg\n    images.txt, image_class_labels.txt, train_test_split.txt, "
        "classes.txt",
    ),
}
