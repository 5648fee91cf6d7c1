"""CamVid: 32 colours to 11 classes, splits that follow the drives, and SegNet's layout."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from franca.eval.datasets import VOID, open_split
from franca.eval.datasets.camvid import CLASSES, COLOURS, VOID_COLOUR, split_of
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import colours, in_turn, numbers, picture


def drive(pattern: str, first: int, last: int, step: int) -> list[str]:
    return [pattern.format(number) for number in range(first, last + 1, step)]


# The frames of CamVid's 701 annotations.
FRAMES = [
    *drive("0001TP_{:06d}", 6690, 10380, 30),
    *drive("0006R0_f{:05d}", 930, 3930, 30),
    *[name.replace("00900", "00901") for name in drive("0016E5_{:05d}", 390, 2400, 30)],
    *drive("0016E5_{:05d}", 4350, 7920, 30),
    *drive("0016E5_{:05d}", 7959, 8159, 2),
    *drive("0016E5_{:05d}", 8190, 8640, 30),
    *drive("Seq05VD_f{:05d}", 0, 5100, 30),
]


def test_the_splits_have_their_known_sizes() -> None:
    assert len(FRAMES) == 701
    assert Counter(map(split_of, FRAMES)) == {"train": 367, "val": 101, "test": 233}


def test_32_colours_are_11_classes_and_void() -> None:
    found = [colour for members in COLOURS.values() for colour in members.values()]
    assert (len(CLASSES), len(found), len(set(found) | {VOID_COLOUR})) == (11, 31, 32)


def test_the_classes_are_those_of_a_real_folder(data_dir: Path) -> None:
    lines = (data_dir / "camvid11/classes.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == [*CLASSES, "void"]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    for frame in ("0001TP_006690", "0001TP_008550", "0016E5_07959", "Seq05VD_f00000"):
        picture(tmp_path / f"701_StillsRaw_full/{frame}.png")
        colours(
            tmp_path / f"LabeledApproved_full/{frame}_L.png",
            [(128, 128, 128), (0, 128, 64), (192, 0, 192), (0, 0, 0), (192, 64, 128)],
        )
    return tmp_path


def test_the_original_layout(original: Path) -> None:
    found = {}
    for split in ("train", "val", "test"):
        source = open_split(f"camvid:{original}", split, "test", "segmentation").source
        found[split] = [Path(source.name(index)).stem for index in range(len(source))]
        bicyclist, car = CLASSES.index("bicyclist"), CLASSES.index("car")
        assert source.mask(0).tolist() == in_turn([0, 1, bicyclist, VOID, car])
    assert found == {
        "train": ["0001TP_006690"],
        "val": ["0016E5_07959"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }


def test_a_worker_process_gets_the_same(original: Path) -> None:
    source = open_split(f"camvid:{original}", "val", "test", "segmentation").source
    assert torch.equal(pickle.loads(pickle.dumps(source)).mask(0), source.mask(0))


def test_an_unknown_colour_is_named(original: Path) -> None:
    colours(original / "LabeledApproved_full/0016E5_07959_L.png", [(128, 128, 128), (1, 2, 3)])
    with pytest.raises(EvalError, match=r"0016E5_07959_L.png holds the colour \(1, 2, 3\), which none of"):
        open_split(f"camvid:{original}", "val", "test", "segmentation").source.mask(0)


def test_a_frame_of_no_drive(original: Path) -> None:
    picture(original / "701_StillsRaw_full/holiday.png")
    with pytest.raises(EvalError, match="'holiday' belongs to none of the four drives"):
        open_split(f"camvid:{original}", "val", "test", "segmentation")


@pytest.mark.parametrize("inside", [".", "CamVid"])
def test_the_layout_of_segnet(tmp_path: Path, inside) -> None:
    for split in ("train", "val", "test"):
        picture(tmp_path / inside / split / "0001TP_006690.png")
        numbers(tmp_path / inside / f"{split}annot" / "0001TP_006690.png", [0, 10, 11])
    opened = open_split(f"camvid:{tmp_path}", None, "test", "segmentation")
    assert (opened.split, len(opened.source)) == ("test", 1)
    assert opened.source.classes == list(CLASSES)
    assert opened.source.mask(0).tolist() == in_turn([0, 10, VOID])
