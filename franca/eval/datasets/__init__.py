"""Data sets of the evaluation: readers for their official layouts and for plain folders."""

from franca.eval.datasets.base import VOID, Layout, OpenedSplit, SegmentationSource
from franca.eval.datasets.layouts import LAYOUTS
from franca.eval.datasets.opening import layout_of, open_split

__all__ = ["LAYOUTS", "VOID", "Layout", "OpenedSplit", "SegmentationSource", "layout_of", "open_split"]
