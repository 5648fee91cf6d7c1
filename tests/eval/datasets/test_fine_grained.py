"""The eleven fine-grained sets: the same four splits for all, and what each set states itself."""

from pathlib import Path

import pytest

pytest.importorskip("scipy")

from torchvision import datasets

from franca.eval.datasets import LAYOUTS, open_split
from franca.eval.datasets.fine_grained import SPLITS, held_out
from franca.eval.errors import EvalError
from tests.eval.datasets import fine_grained_trees as trees
from tests.eval.datasets.fine_grained_trees import PER_CLASS, TEST, TREES

OWN_VALIDATION = ("fgvc_aircraft", "dtd", "flowers102")
ALL = (*TREES, "cifar10", "cifar100", "caltech101")


@pytest.fixture(autouse=True)
def made_up_files_pass_for_the_originals(monkeypatch) -> None:
    """torchvision compares the MD5 of some files, which no small tree can have."""
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        for table in ("train_list", "test_list"):
            monkeypatch.setattr(reader, table, [[name, None] for name, _ in getattr(reader, table)])
        monkeypatch.setattr(reader, "meta", reader.meta | {"md5": None})
    names = {key: (name, None) for key, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", names)


def opened(name: str, data: Path) -> dict:
    return {split: open_split(f"{name}:{data}", split, "train", "classification").source for split in SPLITS}


def examples(source) -> list[tuple[str, int]]:
    return [(source.name(index), label) for index, label in enumerate(source.labels)]


@pytest.mark.parametrize("around", [True, False], ids=["around", "itself"])
@pytest.mark.parametrize("name", TREES)
def test_four_splits_of_files(tmp_path: Path, name: str, around: bool) -> None:
    make, folder = TREES[name]
    make(tmp_path)
    sources = opened(name, tmp_path if around else tmp_path / folder)
    parts = {split: set(examples(source)) for split, source in sources.items()}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 2 * PER_CLASS - len(sources["val"]),
        "val": 2 * (3 if name in OWN_VALIDATION else PER_CLASS // 5),
        "trainval": 2 * PER_CLASS,
        "test": 2 * TEST,
    }
    assert parts["train"] | parts["val"] == parts["trainval"]
    assert not parts["train"] & parts["val"]
    assert not parts["trainval"] & parts["test"]
    for source in sources.values():
        counts = [source.labels.count(label) for label in (0, 1)]
        assert counts[0] == counts[1] == len(source) / 2
        assert source.load(len(source) - 1).shape == (3, 8, 12)


@pytest.mark.parametrize("name", ALL)
def test_every_set_says_which_images_are_for_validation(tmp_path: Path, name: str) -> None:
    (TREES[name][0] if name in TREES else getattr(trees, name))(tmp_path)
    sources = opened(name, tmp_path)
    whole = examples(sources["trainval"])
    assert [whole[index] for index in sources["trainval"].validation] == examples(sources["val"])
    assert [sources[split].validation for split in ("train", "val", "test")] == [None] * 3


@pytest.mark.parametrize("name", [name for name in TREES if name not in OWN_VALIDATION])
def test_other_sets_hold_out_every_fifth_image_of_a_class(tmp_path: Path, name: str) -> None:
    TREES[name][0](tmp_path)
    sources = opened(name, tmp_path)
    held = held_out(sources["trainval"].labels)
    wanted = [example for example, out in zip(examples(sources["trainval"]), held, strict=True) if out]
    assert examples(sources["val"]) == wanted


def test_every_fifth_of_each_class() -> None:
    assert held_out([0, 0, 1, 0, 0, 0, 1]) == [False, False, False, False, False, True, False]
    assert sum(held_out([0, 1] * 25)) == 10


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("food101", ["apple_pie", "waffles"]),
        ("sun397", ["abbey", "church/indoor"]),
        ("stanford_cars", ["Acura", "BMW"]),
        ("fgvc_aircraft", ["707-320", "A300 B4"]),
        ("dtd", ["banded", "zigzagged"]),
        ("oxford_pets", ["Abyssinian", "American Bulldog"]),
        ("cub200", ["001.Black_footed_Albatross", "002.Laysan_Albatross"]),
    ],
)
def test_names_and_labels_belong_together(tmp_path: Path, name: str, classes: list[str]) -> None:
    TREES[name][0](tmp_path)
    source = open_split(f"{name}:{tmp_path}", None, "test", "classification").source
    assert source.classes == classes
    if name in ("food101", "sun397", "dtd", "cub200"):  # their folders are called after the classes
        assert all(classes[label] in source.name(index) for index, label in enumerate(source.labels))


def test_roles_and_means() -> None:
    layouts = {name: LAYOUTS[name] for name in ALL}
    assert {(layout.train, layout.test, layout.kind) for layout in layouts.values()} == {
        ("trainval", "test", "classification")
    }
    assert {name for name, layout in layouts.items() if layout.mean_per_class} == {
        "fgvc_aircraft",
        "oxford_pets",
        "caltech101",
        "flowers102",
    }
    assert len(ALL) == 11


def test_the_mean_per_class_is_handed_on(tmp_path: Path) -> None:
    for name in ("oxford_pets", "dtd"):
        TREES[name][0](tmp_path)
    assert open_split(f"oxford_pets:{tmp_path}", None, "test", "classification").mean_per_class
    assert not open_split(f"dtd:{tmp_path}", None, "test", "classification").mean_per_class


def test_caltech_takes_30_images_of_each_class_background_included(tmp_path: Path) -> None:
    trees.caltech101(tmp_path)
    sources = opened("caltech101", tmp_path)
    assert sources["test"].classes == ["BACKGROUND_Google", "accordion", "yin_yang"]
    counts = {split: [source.labels.count(label) for label in range(3)] for split, source in sources.items()}
    assert counts == {"trainval": [30] * 3, "train": [24] * 3, "val": [6] * 3, "test": [1, 10, 30]}
    assert not set(examples(sources["trainval"])) & set(examples(sources["test"]))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, name: str) -> None:
    getattr(trees, name)(tmp_path)
    sources = opened(name, tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 16,
        "val": 4,
        "trainval": 20,
        "test": 2 * TEST,
    }
    assert set(examples(sources["train"])) | set(examples(sources["val"])) == set(examples(sources["trainval"]))
    test = sources["test"]
    assert (test.labels, test.name(3)) == ([1, 0] * TEST, "test/00003")
    assert test.load(3).shape == (3, 32, 32)
    assert test.load(3).unique().tolist() == [3]
    assert len(test.classes) == 2
    hashes = {open_split(f"{name}:{tmp_path}", split, "test", "classification").hash for split in SPLITS}
    assert len(hashes) == 4


def test_cifar_is_not_read_before_its_md5_was_compared(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    trees.cifar10(tmp_path)
    with pytest.raises(EvalError, match=r"Dataset not found or corrupted\.\); the layout cifar10 expects"):
        open_split(f"cifar10:{tmp_path}", None, "test", "classification")


def test_the_partitions_of_sun_may_lie_beside_it(tmp_path: Path) -> None:
    trees.sun397(tmp_path)
    (tmp_path / "Partitions").mkdir()
    for name in ("Training_01.txt", "Testing_01.txt"):
        (tmp_path / "SUN397" / name).rename(tmp_path / "Partitions" / name)
    assert len(open_split(f"sun397:{tmp_path}", None, "test", "classification").source) == 2 * TEST
    (tmp_path / "Partitions/Testing_01.txt").unlink()
    with pytest.raises(EvalError, match=r"there is no .*SUN397/Testing_01.txt"):
        open_split(f"sun397:{tmp_path}", None, "test", "classification")


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("food101", "food-101/meta/test.json", r"can't be read \(FileNotFoundError: .*meta/test.json"),
        ("stanford_cars", "stanford_cars/cars_test_annos_withlabels.mat", r"can't be read \(Dataset not"),
        ("dtd", "dtd/dtd/images/banded/banded_test_0.jpg", r"its lists name .*banded_test_0.jpg, which isn't there"),
        ("cub200", "CUB_200_2011/classes.txt", r"can't be read \(FileNotFoundError: .*classes.txt"),
        ("oxford_pets", "oxford-iiit-pet/annotations/test.txt", r"annotations/test.txt"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, missing: str, message: str) -> None:
    TREES[name][0](tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(EvalError, match=message) as caught:
        open_split(f"{name}:{tmp_path}", None, "test", "classification")
    assert "download=True" not in str(caught.value)
