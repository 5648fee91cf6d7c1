"""The two sources of a segmentation protocol, as what they are."""

from franca.data.sources import Source
from franca.eval.datasets import SegmentationSource
from franca.eval.errors import EvalError
from franca.eval.protocol import Task


def masked_sources(task: Task) -> tuple[SegmentationSource, SegmentationSource]:
    """Training and test images with their masks. Raises EvalError where their classes differ."""
    assert task.train is not None  # a protocol that trains is given both
    train, test = with_masks(task.train.source), with_masks(task.test.source)
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise EvalError(
            f"{len(train.classes)} classes to learn from and {len(test.classes)} to be scored on, which differ in "
            f"{', '.join(differing[:5])}: name two splits of one data set"
        )
    return train, test


def with_masks(source: Source) -> SegmentationSource:
    """The same source: only sets of images with masks are opened for a segmentation protocol."""
    assert hasattr(source, "mask")
    return source  # type: ignore[return-value]
