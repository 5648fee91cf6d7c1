"""The fine-grained sets in their official shapes, with few images of two or three classes."""

import pickle
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.eval.datasets.trees import as_json, picture, text

PER_CLASS = 10  # images of trainval; of test half as many
TEST = PER_CLASS // 2


def names(folder: str, count: int, start: int = 0) -> list[str]:
    return [f"{folder}_{number:04d}" for number in range(start, start + count)]


def food101(root: Path) -> None:
    meta: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label in ("waffles", "apple_pie"):
        everything = [f"{label}/{name}" for name in names("x", PER_CLASS + TEST)]
        meta["train"][label], meta["test"][label] = everything[:PER_CLASS], everything[PER_CLASS:]
        for name in everything:
            picture(root / f"food-101/images/{name}.jpg")
    for split, content in meta.items():
        as_json(root / f"food-101/meta/{split}.json", content)


def sun397(root: Path) -> None:
    classes = ["/a/abbey", "/c/church/indoor"]
    text(root / "SUN397/ClassName.txt", *classes)
    files = {label: [f"{label}/sun_{name}.jpg" for name in names("x", PER_CLASS + TEST + 3)] for label in classes}
    for file in chain.from_iterable(files.values()):
        picture(root / f"SUN397{file}")
    text(root / "SUN397/Training_01.txt", *(file for label in classes for file in files[label][:PER_CLASS]))
    text(root / "SUN397/Testing_01.txt", *(file for label in classes for file in files[label][-TEST:]))


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Acura", "BMW"], object)})
    places = {"train": folder / "devkit/cars_train_annos.mat", "test": folder / "cars_test_annos_withlabels.mat"}
    for split, file in places.items():
        count = PER_CLASS if split == "train" else TEST
        rows = [(f"{number:05d}.jpg", number % 2 + 1) for number in range(2 * count)]
        for name, _ in rows:
            picture(folder / f"cars_{split}" / name)
        savemat(file, {"annotations": np.array(rows, [("fname", "O"), ("class", "O")])})


def fgvc_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    text(data / "variants.txt", "707-320", "A300 B4")
    for split, count in {"train": 7, "val": 3, "test": TEST}.items():
        rows = [f"{split}{label[0]}{place} {label}" for label in ("707-320", "A300 B4") for place in range(count)]
        text(data / f"images_variant_{split}.txt", *rows)
        for row in rows:
            picture(data / f"images/{row.split()[0]}.jpg")


def dtd(root: Path) -> None:
    data = root / "dtd/dtd"
    for split, count in {"train": 7, "val": 3, "test": TEST}.items():
        rows = [f"{label}/{label}_{split}_{number}.jpg" for label in ("banded", "zigzagged") for number in range(count)]
        text(data / f"labels/{split}1.txt", *rows)
        for row in rows:
            picture(data / "images" / row)


def oxford_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for split, count in {"trainval": PER_CLASS, "test": TEST}.items():
        start = 0 if split == "trainval" else PER_CLASS
        rows = [
            (name, number)
            for number, breed in enumerate(("Abyssinian", "american_bulldog"), 1)
            for name in names(breed, count, start)
        ]
        text(folder / f"annotations/{split}.txt", *(f"{name} {number} 1 1" for name, number in rows))
        for name, _ in rows:
            picture(folder / f"images/{name}.jpg")


def caltech101(root: Path) -> None:
    for label, count in {"BACKGROUND_Google": 31, "accordion": 40, "yin_yang": 60}.items():
        for number in range(1, count + 1):
            picture(root / f"caltech101/101_ObjectCategories/{label}/image_{number:04d}.jpg", size=(2, 2))
    text(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/tmp", "no image")


def flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    splits = {"trnid": 14, "valid": 6, "tstid": 2 * TEST}
    ids = np.split(np.arange(1, sum(splits.values()) + 1), np.cumsum(list(splits.values()))[:-1])
    folder.mkdir(parents=True)
    savemat(folder / "setid.mat", dict(zip(splits, ids, strict=True)))
    savemat(folder / "imagelabels.mat", {"labels": np.arange(sum(splits.values())) % 2 + 1})
    for number in range(1, sum(splits.values()) + 1):
        picture(folder / f"jpg/image_{number:05d}.jpg")


def cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    images = [f"{label}/{name}.jpg" for label, name in product(classes, names("x", PER_CLASS + TEST))]
    for image in images:
        picture(folder / "images" / image)
    text(folder / "classes.txt", *(f"{number} {label}" for number, label in enumerate(classes, 1)))
    text(folder / "images.txt", *(f"{number} {image}" for number, image in enumerate(images, 1)))
    trains = [int(place % (PER_CLASS + TEST) < PER_CLASS) for place in range(len(images))]
    text(folder / "train_test_split.txt", *(f"{number} {train}" for number, train in enumerate(trains, 1)))
    labels = [place // (PER_CLASS + TEST) + 1 for place in range(len(images))]
    text(folder / "image_class_labels.txt", *(f"{number} {label}" for number, label in enumerate(labels, 1)))


def _batch(file: Path, labels: list[int], key: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None].repeat(3072, axis=1)
    file.write_bytes(pickle.dumps({"data": pixels, key: labels}))


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for number in range(1, 6):
        _batch(folder / f"data_batch_{number}", [0, 1, 0, 1], "labels")
    _batch(folder / "test_batch", [1, 0] * TEST, "labels")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "car"]}))


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    _batch(folder / "train", [0, 1] * PER_CLASS, "fine_labels")
    _batch(folder / "test", [1, 0] * TEST, "fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))


TREES: dict[str, tuple[Callable[[Path], None], str]] = {
    "food101": (food101, "food-101"),
    "sun397": (sun397, "SUN397"),
    "stanford_cars": (stanford_cars, "stanford_cars"),
    "fgvc_aircraft": (fgvc_aircraft, "fgvc-aircraft-2013b"),
    "dtd": (dtd, "dtd/dtd"),
    "oxford_pets": (oxford_pets, "oxford-iiit-pet"),
    "flowers102": (flowers102, "flowers-102"),
    "cub200": (cub200, "CUB_200_2011"),
}
