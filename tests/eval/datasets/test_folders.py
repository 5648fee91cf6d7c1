"""Plain folders: splits under the names that people use, classes.txt, and masks that don't fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca.data.errors import UnreadableImage
from franca.eval.datasets import VOID, open_split
from franca.eval.datasets.folders import read_classes
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import SIZE, class_folders, in_turn, numbers, picture, text


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("train", "val", "test"), "train", "val"),
        (("training", "validation"), "train", "val"),
        (("train", "test"), "train", "test"),
        ((".",), "all", "all"),
    ],
)
def test_splits_of_class_folders(tmp_path: Path, folders, train, test) -> None:
    for folder in folders:
        class_folders(tmp_path / folder, {"a": 1, "b": 1})
    assert [open_split(str(tmp_path), None, role, "classification").split for role in ("train", "test")] == [
        train,
        test,
    ]


def test_a_missing_split_is_not_replaced_by_another(tmp_path: Path) -> None:
    class_folders(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(EvalError, match=r"there is no folder .*train"):
        open_split(str(tmp_path), None, "train", "classification")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    text(tmp_path / "classes.txt", "0 road", "1 sky", "2 void")
    picture(tmp_path / "images/val/town/a.jpg")
    picture(tmp_path / "images/val/b.png")
    numbers(tmp_path / "masks/val/town/a.png", [0, 1, 2, 255])
    numbers(tmp_path / "masks/val/b.png", [1], palette=True)
    return tmp_path


def test_images_meet_their_masks(scenes: Path) -> None:
    source = open_split(str(scenes), None, "test", "segmentation").source
    assert [source.name(index) for index in range(len(source))] == ["images/val/b.png", "images/val/town/a.jpg"]
    assert (source.classes, source.labels) == (["road", "sky"], None)
    mask = source.mask(1)
    assert mask.dtype == torch.uint8
    assert mask.tolist() == in_turn([0, 1, VOID, VOID])
    assert source.mask(0).tolist() == in_turn([1])
    assert [source.load(index).shape[-2:] == source.mask(index).shape for index in range(2)] == [True, True]


def test_an_undivided_folder(tmp_path: Path) -> None:
    text(tmp_path / "classes.txt", "road", "sky")
    picture(tmp_path / "images/a.jpg")
    numbers(tmp_path / "masks/a.png", [1])
    opened = open_split(str(tmp_path), None, "test", "segmentation")
    assert (opened.split, opened.source.mask(0).tolist()) == ("all", in_turn([1]))


@pytest.mark.parametrize(
    ("lines", "classes", "values", "wanted"),
    [
        (["0 sky", "1 traffic sign", "2 void"], ["sky", "traffic sign"], [0, 1, 2, 255], [0, 1, VOID, VOID]),
        (["0 void", "7 sky", "9 road"], ["sky", "road"], [0, 7, 9], [VOID, 0, 1]),
        (["sky", "", "road", "Unlabelled"], ["sky", "road"], [0, 1, 2], [0, 1, VOID]),
    ],
)
def test_the_list_of_classes(tmp_path: Path, lines, classes, values, wanted) -> None:
    text(tmp_path / "classes.txt", *lines)
    numbers(tmp_path / "mask.png", values)
    found, numbering = read_classes(tmp_path / "classes.txt")
    assert found == classes
    assert numbering.read(tmp_path / "mask.png").tolist() == in_turn(wanted)


@pytest.mark.parametrize("lines", [[], ["0 void"], ["0 sky", "0 road"], [f"{n} c{n}" for n in range(256)]])
def test_a_list_without_use(tmp_path: Path, lines) -> None:
    text(tmp_path / "classes.txt", *lines)
    with pytest.raises(EvalError, match=r"classes.txt must list 1 to 254 classes, one a line"):
        read_classes(tmp_path / "classes.txt")


def test_missing_masks_are_counted_and_named(scenes: Path) -> None:
    (scenes / "masks/val/town/a.png").unlink()
    with pytest.raises(EvalError, match=r"1 of 2 images in .*val have no mask in .*val: town/a.jpg; the layout"):
        open_split(str(scenes), None, "test", "segmentation")


def test_no_image_no_list(scenes: Path) -> None:
    (scenes / "images/train").mkdir()
    (scenes / "masks/train").mkdir()
    with pytest.raises(EvalError, match="holds no image of this split"):
        open_split(str(scenes), None, "train", "segmentation")
    (scenes / "classes.txt").unlink()
    with pytest.raises(EvalError, match=r"there is no .*classes.txt; the layout segmentation_folder expects"):
        open_split(str(scenes), None, "test", "segmentation")


class TestMasksThatDoNotFit:
    def mask(self, scenes: Path) -> torch.Tensor:
        return open_split(str(scenes), None, "test", "segmentation").source.mask(0)

    def test_another_size(self, scenes: Path) -> None:
        numbers(scenes / "masks/val/b.png", [1], size=(8, 12))
        with pytest.raises(EvalError, match=r"masks/val/b.png has 8 x 12 pixels, its image images/val/b.png 12 x 8"):
            self.mask(scenes)

    def test_a_value_of_no_class(self, scenes: Path) -> None:
        numbers(scenes / "masks/val/b.png", [0, 3, 9])
        with pytest.raises(EvalError, match=r"b.png holds 3, 9, which stands for no class \(0 to 2, 255 are known\)"):
            self.mask(scenes)

    def test_a_value_of_16_bits(self, scenes: Path) -> None:
        Image.fromarray(np.full((8, 12), 1000, np.uint16)).save(scenes / "masks/val/b.png")
        with pytest.raises(EvalError, match=r"b.png holds 1000, which stands for no class"):
            self.mask(scenes)

    def test_16_bits_of_known_values(self, scenes: Path) -> None:
        Image.fromarray(np.full((8, 12), 1, np.uint16)).save(scenes / "masks/val/b.png")
        assert self.mask(scenes).tolist() == in_turn([1])

    def test_colours(self, scenes: Path) -> None:
        picture(scenes / "masks/val/b.png")
        with pytest.raises(EvalError, match=r"b.png holds colours \(RGB\), not one class number per pixel"):
            self.mask(scenes)

    @pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
    def test_damage(self, scenes: Path, content) -> None:
        file = scenes / "masks/val/b.png"
        file.write_bytes(file.read_bytes()[:60] if content == "cut" else content)
        with pytest.raises(EvalError, match=r"the mask .*b.png can't be read"):
            self.mask(scenes)


def test_an_image_that_can_not_be_read_is_no_error_of_the_mask(scenes: Path) -> None:
    (scenes / "images/val/b.png").write_bytes(b"cut off")
    source = open_split(str(scenes), None, "test", "segmentation").source
    for read in (source.load, source.mask):
        with pytest.raises(UnreadableImage, match=r"b.png"):
            read(0)
    assert source.mask(1).shape == (SIZE[1], SIZE[0])


def test_a_turned_image_has_the_size_that_people_see(scenes: Path) -> None:
    turned = Image.new("RGB", SIZE)
    turned.getexif()[0x0112] = 6
    turned.save(scenes / "images/val/town/a.jpg", exif=turned.getexif())
    numbers(scenes / "masks/val/town/a.png", [1], size=SIZE[::-1])
    source = open_split(str(scenes), None, "test", "segmentation").source
    assert source.mask(1).shape == source.load(1).shape[-2:] == SIZE


def test_the_mask_of_a_huge_image_shrinks_with_it(scenes: Path) -> None:
    size = (3000, 2100)
    picture(scenes / "images/val/b.png", size=size)
    left = np.zeros((size[1], size[0]), np.uint8)
    left[:, : size[0] // 3] = 1
    Image.fromarray(left).save(scenes / "masks/val/b.png")
    source = open_split(str(scenes), None, "test", "segmentation").source
    mask = source.mask(0)
    assert mask.shape == source.load(0).shape[-2:]
    assert len(mask) < size[1]
    assert mask.float().mean().item() == pytest.approx(1 / 3, abs=1e-3)


def test_a_real_folder(data_dir: Path) -> None:
    for role in ("train", "test"):
        source = open_split(str(data_dir / "camvid11"), None, role, "segmentation").source
        lines = (data_dir / "camvid11/classes.txt").read_text().split()
        assert "void" in lines
        assert len(source.classes) == len(lines) // 2 - 1
        counts = torch.zeros(256, dtype=torch.int64)
        for index in range(0, len(source), 10):
            mask = source.mask(index)
            assert mask.shape == source.load(index).shape[-2:]
            counts += mask.flatten().bincount(minlength=256)
        assert counts[VOID] > 0
        assert counts[: len(source.classes)].min() > 0
        assert counts.sum() == counts[: len(source.classes)].sum() + counts[VOID]
