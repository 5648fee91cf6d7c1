"""From "layout:path" to a split: what is recognised, what is refused with which words, and what the hash stands for."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from franca.eval.datasets import LAYOUTS, open_split
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import class_folders, numbers, picture, text


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    class_folders(root / "train", {"cat": 3, "dog": 2})
    class_folders(root / "val", {"cat": 1, "dog": 1})
    return root


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    root = tmp_path / "streets"
    text(root / "classes.txt", "0 road", "1 sky")
    for split in ("train", "val"):
        picture(root / f"images/{split}/a.jpg")
        numbers(root / f"masks/{split}/a.png", [0, 1])
    return root


@pytest.mark.parametrize("prefix", ["", "folder:"])
@pytest.mark.parametrize(("role", "split", "labels"), [("train", "train", [0, 0, 0, 1, 1]), ("test", "val", [0, 1])])
def test_class_folders_are_recognised_and_the_role_finds_the_split(animals, prefix, role, split, labels) -> None:
    opened = open_split(f"{prefix}{animals}", None, role, "classification")
    assert (opened.name, opened.split) == ("folder", split)
    assert (opened.source.classes, opened.source.labels) == (["cat", "dog"], labels)
    assert (opened.candidates, opened.label_sets, opened.mean_per_class) == (None, None, False)


def test_images_and_masks_are_recognised(streets) -> None:
    assert open_split(str(streets), None, "test", "segmentation").name == "segmentation_folder"


def test_home_is_expanded(animals, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(animals.parent))
    assert len(open_split("folder:~/animals", "train", "test", "classification").source) == 5


def test_a_protocol_of_images_reads_both_kinds(animals, streets, tmp_path) -> None:
    picture(tmp_path / "loose/a.png")
    assert [open_split(str(path), None, "test", "images").name for path in (animals, streets)] == [
        "folder",
        "segmentation_folder",
    ]
    loose = open_split(str(tmp_path / "loose"), None, "test", "images")
    assert (loose.split, loose.source.labels, len(loose.source)) == ("all", None, 1)


@pytest.mark.parametrize(
    ("data", "split", "kind", "message"),
    [
        ("{tmp}/nothing", None, "classification", r"is no folder; name a folder, or LAYOUT:PATH .*imagenet_v2.*camvid"),
        ("foo:in", None, "classification", r"^'foo:in' is no folder; name a folder"),
        ("imagnet:{tmp}", None, "classification", r"did you mean imagenet:"),
        ("voc:", None, "segmentation", r"names no folder: write voc:PATH"),
        ("voc:{tmp}/nothing", None, "segmentation", r"does not exist; the layout voc expects\nPATH/"),
        ("{animals}", None, "segmentation", r"is a data set of classification, and segmentation is needed: .*ade20k"),
        ("{animals}", "test", "classification", r"split test: there is no folder .*test; the layout folder expects"),
        ("{animals}", "trainaug", "classification", r"no split 'trainaug': choose train, val, test, all"),
        ("imagenet_a:{tmp}", None, "classification", r"imagenet-a/n01498041"),
        (
            "{animals}/train/cat",
            None,
            "classification",
            r"fewer than two class folders; the layout folder expects",
        ),
    ],
)
def test_what_is_refused_says_what_was_expected(animals, tmp_path, data, split, kind, message) -> None:
    with pytest.raises(EvalError, match=message):
        open_split(data.format(tmp=tmp_path, animals=animals), split, "test", kind)


def test_a_set_that_only_tests_has_no_training_split(tmp_path) -> None:
    with pytest.raises(EvalError, match="has no training split"):
        open_split(f"imagenet_sketch:{tmp_path}", None, "train", "classification")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_describes_itself_and_refuses_an_empty_folder(tmp_path, name) -> None:
    layout = LAYOUTS[name]
    assert layout.expected.startswith("PATH/")
    assert layout.test in layout.splits
    assert layout.train in (*layout.splits, "")
    with pytest.raises(EvalError) as caught:
        open_split(f"{name}:{tmp_path}", layout.test, "test", layout.kind)
    assert layout.expected in str(caught.value)


class TestHash:
    def opened(self, path: Path, split: str = "train") -> str:
        return open_split(str(path), split, "train", "images").hash

    def test_it_does_not_depend_on_the_place(self, animals) -> None:
        shutil.copytree(animals, animals.parent / "moved")
        assert self.opened(animals) == self.opened(animals.parent / "moved")

    def test_features_are_told_apart_by_what_the_images_show(self, tmp_path) -> None:
        """Names and sizes are the same."""
        for name in ("one", "other", "again"):
            (tmp_path / name).mkdir()
            Image.new("RGB", (8, 8), "blue" if name == "other" else "red").save(tmp_path / name / "0.bmp")
        one, other, again = (
            open_split(str(tmp_path / name), "all", "test", "images") for name in ("one", "other", "again")
        )
        assert one.hash == other.hash
        assert one.images_hash == again.images_hash != other.images_hash

    def test_splits_differ(self, animals) -> None:
        assert self.opened(animals) != self.opened(animals, "val")

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: os.rename(folder / "cat/0.png", folder / "cat/9.png"),
            lambda folder: os.rename(folder / "cat", folder / "lion"),
            lambda folder: os.remove(folder / "dog/0.png"),
            lambda folder: picture(folder / "dog/0.png", size=(50, 50)),
        ],
        ids=["name", "class", "count", "size"],
    )
    def test_it_changes_with(self, animals, change) -> None:
        before = self.opened(animals)
        change(animals / "train")
        assert self.opened(animals) != before

    def test_masks_and_classes_count(self, streets) -> None:
        before = self.opened(streets)
        numbers(streets / "masks/train/a.png", [0, 1, 1, 0, 1, 0, 0])
        changed = self.opened(streets)
        text(streets / "classes.txt", "0 road", "1 air")
        assert len({before, changed, self.opened(streets)}) == 3
