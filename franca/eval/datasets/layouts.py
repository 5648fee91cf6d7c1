"""Every layout that the evaluation reads, by the name it has on the command line."""

from franca.eval.datasets.ade20k import ADE20K
from franca.eval.datasets.base import Layout
from franca.eval.datasets.camvid import CAMVID
from franca.eval.datasets.cifar import CIFAR10, CIFAR100
from franca.eval.datasets.coco import COCO_STUFF, COCO_THINGS
from franca.eval.datasets.fine_grained_sets import FINE_GRAINED
from franca.eval.datasets.folders import FOLDER, SEGMENTATION_FOLDER
from franca.eval.datasets.imagenet import IMAGENET
from franca.eval.datasets.imagenet_transfer import (
    IMAGENET_A,
    IMAGENET_R,
    IMAGENET_REAL,
    IMAGENET_SKETCH,
    IMAGENET_V2,
)
from franca.eval.datasets.voc import VOC

LAYOUTS: dict[str, Layout] = {
    "folder": FOLDER,
    "imagenet": IMAGENET,
    "imagenet_v2": IMAGENET_V2,
    "imagenet_a": IMAGENET_A,
    "imagenet_r": IMAGENET_R,
    "imagenet_sketch": IMAGENET_SKETCH,
    "imagenet_real": IMAGENET_REAL,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    **FINE_GRAINED,
    "segmentation_folder": SEGMENTATION_FOLDER,
    "voc": VOC,
    "ade20k": ADE20K,
    "coco_things": COCO_THINGS,
    "coco_stuff": COCO_STUFF,
    "camvid": CAMVID,
}
