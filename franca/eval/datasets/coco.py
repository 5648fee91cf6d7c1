"""COCO 2017 in groups: 12 of things (from panoptic masks) and 15 of stuff, as Ziegler and Asano (2022) score them."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from franca.eval.datasets.base import VOID, Layout, WrongLayout, inside, need
from franca.eval.datasets.listed import MaskedImages
from franca.eval.datasets.masks import Numbering, read_colours
from franca.eval.datasets.pairs import pair
from franca.eval.datasets.voc import check_files
from franca.eval.errors import EvalError

SPLITS = ("train", "val")
THING_GROUPS = 12
FIRST_STUFF = 92  # COCO's numbers of stuff are 92 to 182; 183 is "other"
OTHER = 183
# Supercategories of stuff_val2017.json, sorted as there; members by COCO's numbers (Caesar et al., 2018).
STUFF_GROUPS = {
    "building": (95, 96, 128, 151, 158, 166),
    "ceiling": (102, 103),
    "floor": (101, 114, 115, 116, 117, 118),
    "food-stuff": (121, 122, 153, 170),
    "furniture-stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "raw-material": (100, 132, 139, 143),
    "sky": (106, 157),
    "solid": (127, 135, 150, 160, 162, 182),
    "structural": (99, 113, 138, 146, 164),
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "wall": (171, 172, 173, 174, 175, 176, 177),
    "water": (120, 148, 155, 178, 179),
    "window": (180, 181),
}


class PanopticImages(MaskedImages):
    """Images whose masks number segments; a table says of each image which segment is of which class.

    listing: the JSON file with that table; tables: for each image, segment -> class number.
    segments, numbers: of all images in a row; ends: (N + 1,) int64, where each image's own end.
    """

    def __init__(
        self,
        root: Path,
        names: list[str],
        masks: list[str],
        groups: list[str],
        listing: Path,
        tables: list[dict[int, int]],
    ) -> None:
        super().__init__(root, names, masks, groups, read_segments)
        self.listing = listing
        self.ends = np.cumsum([0, *map(len, tables)])
        self.segments = np.array([segment for table in tables for segment in table], np.uint32)
        self.numbers = np.array([number for table in tables for number in table.values()], np.uint8)

    def files(self) -> Iterator[str]:
        """Paths of all files that the images and their masks are read from."""
        return chain(super().files(), [str(self.listing)])

    def _classes_of(self, index: int, file: Path) -> NDArray[np.uint8]:
        part = slice(self.ends[index], self.ends[index + 1])
        table = dict(zip(self.segments[part].tolist(), self.numbers[part].tolist(), strict=True)) | {0: VOID}
        values = read_segments(file)
        found, place = np.unique(values, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in table]
        if unknown:
            raise EvalError(f"the mask {file} holds segment {unknown[0]}, which its JSON file doesn't list")
        return np.array([table[value] for value in found.tolist()], np.uint8)[place.reshape(values.shape)]


def read_segments(file: Path) -> NDArray[Any]:
    """(H, W) uint32 numbers of segments: red + 256 green + 65536 blue. Raises EvalError."""
    colours = read_colours(file).astype(np.uint32)
    segments: NDArray[Any] = colours[..., 0] + (colours[..., 1] << 8) + (colours[..., 2] << 16)
    return segments


def coco_things(path: Path, split: str) -> PanopticImages:
    """Things by COCO's 12 supercategories, in the order of their names; all else is void. Raises WrongLayout."""
    images = _images(path, split)
    panoptic = need(path / f"annotations/panoptic_{split}2017.json")
    groups, tables = _read_panoptic(panoptic)
    names = [f"{Path(mask).stem}.jpg" for mask in tables]
    check_files(images, names)
    check_files(panoptic.with_suffix(""), list(tables))
    return PanopticImages(
        path,
        [str((images / name).relative_to(path)) for name in names],
        [f"annotations/panoptic_{split}2017/{mask}" for mask in tables],
        groups,
        panoptic,
        list(tables.values()),
    )


def _read_panoptic(file: Path) -> tuple[list[str], dict[str, dict[int, int]]]:
    """Names of the groups, and for each mask file, by name, segment -> number of its group (VOID for stuff)."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        categories = content["categories"]
        groups = sorted({category["supercategory"] for category in categories if category["isthing"]})
        number_of = {
            category["id"]: groups.index(category["supercategory"]) if category["isthing"] else VOID
            for category in categories
        }
        tables = {
            annotation["file_name"]: {
                item["id"]: number_of[item["category_id"]] for item in annotation["segments_info"]
            }
            for annotation in sorted(content["annotations"], key=lambda annotation: str(annotation["file_name"]))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise WrongLayout(f"{file} is no panoptic annotation of COCO ({type(error).__name__}: {error})") from error
    if len(groups) != THING_GROUPS:
        raise WrongLayout(f"{file} has {len(groups)} supercategories of things, not {THING_GROUPS}")
    return groups, tables


def coco_stuff(path: Path, split: str) -> MaskedImages:
    """Stuff by its 15 supercategories, in the order of their names; things and "other" are void. Raises WrongLayout."""
    images = _images(path, split)
    for masks, ending, first in _stuff_masks(path, split):
        if masks.is_dir():
            names, files = pair(path, images, masks, ending)
            return MaskedImages(path, names, files, list(STUFF_GROUPS), stuff_numbering(first).read)
    raise WrongLayout(f"there is no {path / 'annotations' / f'stuff_{split}2017_pixelmaps'}, nor any other stuff masks")


def stuff_numbering(first: int) -> Numbering:
    """Values of masks in which the first kind of stuff (banner) is ``first``, and things lie below it."""
    shift = first - FIRST_STUFF
    members = {
        kind + shift: number for number, kinds in enumerate(STUFF_GROUPS.values()) for kind in kinds
    }  # value -> group
    return Numbering(members, void=[*range(first), OTHER + shift, VOID])


def _stuff_masks(path: Path, split: str) -> list[tuple[Path, str, int]]:
    """Folders that may hold the masks, what their files' names end in, and the value of the first kind of stuff."""
    maps = [path / place / f"{split}2017" for place in ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations")]
    found = [(path / f"annotations/stuff_{split}2017_pixelmaps", "", FIRST_STUFF)]
    for folder in maps:
        converted = folder.is_dir() and next(folder.glob("*_labelTrainIds.png"), None) is not None
        found.append((folder, "_labelTrainIds", 80) if converted else (folder, "", FIRST_STUFF - 1))
    return found


def _images(path: Path, split: str) -> Path:
    return need(inside(path, "images") / f"{split}2017")


COCO_THINGS = Layout(
    "segmentation",
    coco_things,
    SPLITS,
    "train",
    "val",
    """\
PATH/
  val2017/000000000139.jpg                          or images/val2017/; train2017 likewise
  annotations/
    panoptic_val2017.json
    panoptic_val2017/000000000139.png               from panoptic_val2017.zip""",
)

COCO_STUFF = Layout(
    "segmentation",
    coco_stuff,
    SPLITS,
    "train",
    "val",
    """\
PATH/
  val2017/000000000139.jpg                          or images/val2017/; train2017 likewise
and one of
  annotations/stuff_val2017_pixelmaps/000000000139.png      92 to 182, 0 = things, 183 = other
  stuffthingmaps_trainval2017/val2017/000000000139.png      0 to 181, 255 = unlabelled; or stuffthingmaps/, annotations/
  stuffthingmaps/val2017/000000000139_labelTrainIds.png     0 to 170, 255 = unlabelled (mmsegmentation)""",
)
