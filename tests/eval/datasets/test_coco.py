"""COCO in groups: panoptic masks to 12 groups of things, stuff masks of three kinds to 15 groups."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca.eval.datasets import VOID, open_split
from franca.eval.datasets.coco import OTHER, STUFF_GROUPS, stuff_numbering
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import as_json, colours, in_turn, numbers, picture

# One category of each group, and two of one group; numbers and groups are COCO's own.
THINGS = {
    **{1: "person", 2: "vehicle", 3: "vehicle", 10: "outdoor", 16: "animal", 27: "accessory", 34: "sports"},
    **{44: "kitchen", 52: "food", 62: "furniture", 72: "electronic", 78: "appliance", 84: "indoor"},
}
GROUPS = sorted(set(THINGS.values()))
STUFF = {92: "textile", 200: "floor"}


def rgb(segment: int) -> tuple[int, int, int]:
    return segment % 256, segment // 256 % 256, segment // 65536


@pytest.fixture
def things(tmp_path: Path) -> Path:
    categories = [{"id": number, "supercategory": group, "isthing": 1, "name": "x"} for number, group in THINGS.items()]
    categories += [{"id": number, "supercategory": group, "isthing": 0, "name": "y"} for number, group in STUFF.items()]
    segments = {
        "000000000632": [(300, 3), (70_000, 92)],
        "000000000139": [(7, 1), (3_226_956, 2), (9, 3), (11, 84), (12, 200)],
    }
    annotations = []
    for name, items in segments.items():
        picture(tmp_path / f"val2017/{name}.jpg")
        folder = tmp_path / "annotations/panoptic_val2017"
        colours(folder / f"{name}.png", [(0, 0, 0), *(rgb(segment) for segment, _ in items)])
        infos = [{"id": segment, "category_id": category, "iscrowd": 0} for segment, category in items]
        annotations.append({"image_id": int(name), "file_name": f"{name}.png", "segments_info": infos})
    content = {"categories": categories, "annotations": annotations, "images": []}
    as_json(tmp_path / "annotations/panoptic_val2017.json", content)
    return tmp_path


def test_things_by_group(things: Path) -> None:
    opened = open_split(f"coco_things:{things}", None, "test", "segmentation")
    source = opened.source
    assert (opened.split, source.classes) == ("val", GROUPS)
    assert len(GROUPS) == 12
    assert [source.name(index) for index in range(2)] == ["val2017/000000000139.jpg", "val2017/000000000632.jpg"]
    person, vehicle, indoor = (GROUPS.index(group) for group in ("person", "vehicle", "indoor"))
    assert source.mask(0).tolist() == in_turn([VOID, person, vehicle, vehicle, indoor, VOID])
    assert source.mask(1).tolist() == in_turn([VOID, vehicle, VOID])


def test_a_worker_process_gets_the_same(things: Path) -> None:
    source = open_split(f"coco_things:{things}", None, "test", "segmentation").source
    sent = pickle.loads(pickle.dumps(source))
    for index in range(2):
        assert sent.name(index) == source.name(index)
        assert torch.equal(sent.mask(index), source.mask(index))
        assert torch.equal(sent.load(index), source.load(index))


def test_images_may_lie_in_a_folder_of_their_own(things: Path) -> None:
    (things / "images").mkdir()
    (things / "val2017").rename(things / "images/val2017")
    source = open_split(f"coco_things:{things}", None, "test", "segmentation").source
    assert source.name(0) == "images/val2017/000000000139.jpg"
    assert source.load(0).shape[-2:] == source.mask(0).shape


def test_a_segment_that_nobody_listed(things: Path) -> None:
    colours(things / "annotations/panoptic_val2017/000000000139.png", [(7, 0, 0), (77, 0, 0)])
    with pytest.raises(EvalError, match=r"000000000139.png holds segment 77, which its JSON file doesn't list"):
        open_split(f"coco_things:{things}", None, "test", "segmentation").source.mask(0)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "annotations/panoptic_val2017.json").unlink(), r"there is no .*panoptic_val2017.json"),
        (lambda root: (root / "val2017/000000000139.jpg").unlink(), r"1 of 2 files are missing in .*val2017"),
        (
            lambda root: (root / "annotations/panoptic_val2017/000000000632.png").unlink(),
            r"1 of 2 files are missing in .*panoptic_val2017: 000000000632.png",
        ),
        (
            lambda root: as_json(root / "annotations/panoptic_val2017.json", {"images": []}),
            r"is no panoptic annotation of COCO \(KeyError: 'categories'\)",
        ),
        (
            lambda root: as_json(
                root / "annotations/panoptic_val2017.json",
                {"categories": [{"id": 1, "isthing": 1, "supercategory": "person"}], "annotations": []},
            ),
            r"has 1 supercategories of things, not 12",
        ),
    ],
)
def test_things_say_what_is_wrong(things: Path, break_it, message) -> None:
    break_it(things)
    with pytest.raises(EvalError, match=message):
        open_split(f"coco_things:{things}", None, "test", "segmentation")


def test_the_groups_of_stuff_hold_each_kind_once() -> None:
    kinds = [kind for group in STUFF_GROUPS.values() for kind in group]
    assert sorted(kinds) == list(range(92, 183))
    assert len(STUFF_GROUPS) == 15
    assert list(STUFF_GROUPS) == sorted(STUFF_GROUPS)


@pytest.mark.parametrize(
    ("masks", "ending", "first"),
    [
        ("annotations/stuff_val2017_pixelmaps", "", 92),
        ("stuffthingmaps_trainval2017/val2017", "", 91),
        ("annotations/val2017", "", 91),
        ("stuffthingmaps/val2017", "_labelTrainIds", 80),
    ],
)
def test_stuff_by_group(tmp_path: Path, masks, ending, first) -> None:
    picture(tmp_path / "val2017/000000000139.jpg")
    values = [0, first - 1, first, first + 90, 255, OTHER - 92 + first]
    numbers(tmp_path / masks / f"000000000139{ending}.png", values)
    source = open_split(f"coco_stuff:{tmp_path}", None, "test", "segmentation").source
    assert source.classes == list(STUFF_GROUPS)
    banner, wood = (source.classes.index(group) for group in ("textile", "solid"))  # the first and last kind
    assert source.mask(0).tolist() == in_turn([VOID, VOID, banner, wood, VOID, VOID])


def test_the_three_kinds_of_stuff_masks_say_the_same(tmp_path: Path) -> None:
    """mmsegmentation numbers the 171 classes that occur without gaps: 80 things, then all 91 kinds of stuff."""
    coco = np.arange(92, 183)
    read = []
    for first in (92, 91, 80):
        Image.fromarray((coco - 92 + first).astype(np.uint8)[None]).save(tmp_path / "mask.png")
        read.append(stuff_numbering(first).read(tmp_path / "mask.png").tolist())
    assert read[0] == read[1] == read[2]
    assert sorted(set(read[0][0])) == list(range(15))


def test_converted_stuff_masks_may_lie_beside_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "val2017/a.jpg")
    numbers(tmp_path / "stuffthingmaps/val2017/a.png", [91])
    numbers(tmp_path / "stuffthingmaps/val2017/a_labelTrainIds.png", [80])
    source = open_split(f"coco_stuff:{tmp_path}", None, "test", "segmentation").source
    assert source.mask(0).tolist() == in_turn([list(STUFF_GROUPS).index("textile")])


def test_stuff_without_masks(tmp_path: Path) -> None:
    picture(tmp_path / "val2017/a.jpg")
    with pytest.raises(EvalError, match=r"there is no .*stuff_val2017_pixelmaps, nor any other stuff masks"):
        open_split(f"coco_stuff:{tmp_path}", None, "test", "segmentation")
