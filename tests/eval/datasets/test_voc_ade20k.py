"""Pascal VOC 2012 and ADE20K in their official shapes."""

from pathlib import Path

import pytest

from franca.eval.datasets import VOID, open_split
from franca.eval.datasets.voc import CLASSES
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import in_turn, numbers, picture, text


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    names = ["2007_000032", "2007_000039", "2008_000008"]
    for name in [*names, "2009_000001"]:
        picture(root / f"JPEGImages/{name}.jpg")
    for name in names[:2]:
        numbers(root / f"SegmentationClass/{name}.png", [0, 1, 20, 255], palette=True)
    for name in names:
        numbers(root / f"SegmentationClassAug/{name}.png", [0, 15])
    lists = root / "ImageSets/Segmentation"
    text(lists / "train.txt", names[0])
    text(lists / "val.txt", names[1])
    text(lists / "trainval.txt", *names[:2])
    text(lists / "trainaug.txt", *(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names))
    return tmp_path


@pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_lies_at_any_of_three_depths(voc, inside) -> None:
    opened = open_split(f"voc:{voc / inside}", None, "test", "segmentation")
    assert (opened.split, len(opened.source), opened.source.name(0)) == ("val", 1, "JPEGImages/2007_000039.jpg")


def test_voc_classes_and_void(voc) -> None:
    source = open_split(f"voc:{voc}", "val", "test", "segmentation").source
    assert len(CLASSES) == len(set(source.classes)) == 21
    assert (source.classes[0], source.classes[15], source.classes[20]) == ("background", "person", "tvmonitor")
    assert source.mask(0).tolist() == in_turn([0, 1, 20, VOID])


@pytest.mark.parametrize(("split", "count"), [("train", 1), ("val", 1), ("trainval", 2), ("trainaug", 3)])
def test_voc_splits(voc, split, count) -> None:
    assert len(open_split(f"voc:{voc}", split, "train", "segmentation").source) == count


def test_voc_learns_from_trainaug_whose_masks_are_others(voc) -> None:
    opened = open_split(f"voc:{voc}", None, "train", "segmentation")
    assert opened.split == "trainaug"
    assert opened.source.mask(0).tolist() == in_turn([0, 15])


@pytest.mark.parametrize(
    ("remove", "split", "message"),
    [
        ("ImageSets/Segmentation/trainaug.txt", "trainaug", r"there is no .*trainaug.txt; the layout voc expects"),
        ("SegmentationClass/2007_000039.png", "val", r"1 of 1 files are missing in .*SegmentationClass: 2007_000039"),
        ("JPEGImages/2008_000008.jpg", "trainaug", r"1 of 3 files are missing in .*JPEGImages: 2008_000008.jpg"),
    ],
)
def test_voc_says_what_is_missing(voc, remove, split, message) -> None:
    (voc / "VOCdevkit/VOC2012" / remove).unlink()
    with pytest.raises(EvalError, match=message):
        open_split(f"voc:{voc}", split, "train", "segmentation")


def test_voc_refuses_a_21st_class(voc) -> None:
    numbers(voc / "VOCdevkit/VOC2012/SegmentationClass/2007_000039.png", [0, 21], palette=True)
    with pytest.raises(EvalError, match=r"2007_000039.png holds 21, .*0 to 20, 255 are known"):
        open_split(f"voc:{voc}", "val", "test", "segmentation").source.mask(0)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for folder, name in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            picture(root / f"images/{folder}/ADE_{name}_{number:08d}.jpg")
            numbers(root / f"annotations/{folder}/ADE_{name}_{number:08d}.png", [0, 1, 150])
    rows = [f"{number}\t0.1\t10\t1\tclass {number}, of things" for number in range(1, 151)]
    text(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *rows)
    return tmp_path


@pytest.mark.parametrize("inside", [".", "ADEChallengeData2016"])
@pytest.mark.parametrize(("role", "name"), [("train", "ADE_train_00000002.jpg"), ("test", "ADE_val_00000002.jpg")])
def test_ade20k(ade, inside, role, name) -> None:
    source = open_split(f"ade20k:{ade / inside}", None, role, "segmentation").source
    assert (len(source), Path(source.name(1)).name) == (2, name)
    assert len(source.classes) == 150
    assert source.classes[149] == "class 150, of things"
    assert source.mask(0).tolist() == in_turn([VOID, 0, 149])


def test_ade20k_without_names(ade) -> None:
    (ade / "ADEChallengeData2016/objectInfo150.txt").unlink()
    classes = open_split(f"ade20k:{ade}", None, "test", "segmentation").source.classes
    assert (len(classes), classes[0], classes[-1]) == (150, "1", "150")


def test_ade20k_with_names_of_another_table(ade) -> None:
    text(ade / "ADEChallengeData2016/objectInfo150.txt", "1\t0.1\t10\t1\twall")
    with pytest.raises(EvalError, match=r"objectInfo150.txt names 1 classes, not 150"):
        open_split(f"ade20k:{ade}", None, "test", "segmentation")


def test_ade20k_refuses_masks_of_the_full_set(ade) -> None:
    numbers(ade / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", [151])
    with pytest.raises(EvalError, match=r"holds 151, .*0 to 150 are known"):
        open_split(f"ade20k:{ade}", None, "test", "segmentation").source.mask(0)
