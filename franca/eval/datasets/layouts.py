"""Every layout that the evaluation reads, by the name it has on the command line."""

from franca.eval.datasets.base import Layout
from franca.eval.datasets.folders import FOLDER, SEGMENTATION_FOLDER
from franca.eval.datasets.voc import VOC

LAYOUTS: dict[str, Layout] = {
    "folder": FOLDER,
    "voc": VOC,
    "segmentation_folder": SEGMENTATION_FOLDER,
}
