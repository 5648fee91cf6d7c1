"""Every protocol by its name, in the order of the paper's tables: what it is at a glance, and the file that holds it.

Only the protocol that is asked for is imported: the command line tells of all of them without waiting for torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from franca.eval.protocol import Protocol


@dataclass(frozen=True)
class Entry:
    """A protocol at a glance.

    Attributes:
        kind: which data sets it reads.
        module: the file that defines its PROTOCOL.
        trains: whether it needs a training split.
    """

    name: str
    summary: str
    kind: Literal["classification", "segmentation", "images"]
    module: str
    trains: bool = True

    def load(self) -> "Protocol":
        """Its settings and what runs it."""
        found: Protocol = import_module(f"franca.eval.protocols.{self.module}").PROTOCOL
        return found


_ENTRIES = (
    Entry("knn", "k nearest neighbours among the training images vote for the class", "classification", "knn"),
    Entry(
        "linear",
        "linear classifiers on frozen features: the best of a grid, and on transfer sets",
        "classification",
        "linear",
    ),
    Entry(
        "logistic",
        "logistic regression on frozen features, its penalty chosen on a validation split",
        "classification",
        "logistic",
    ),
    Entry(
        "linear_segmentation",
        "linear segmentation: batch norm and a linear layer on patch features, mIoU",
        "segmentation",
        "linear_segmentation",
    ),
    Entry("in_context", "in-context segmentation by nearest patches (Hummingbird), mIoU", "segmentation", "in_context"),
    Entry(
        "overclustering",
        "k-means of patch features against masks: mIoU after matching clusters to classes",
        "segmentation",
        "overclustering",
        trains=False,
    ),
    Entry(
        "position_bias",
        "what patch features say about the place of the patch: predictors of position, entropy of clusters",
        "images",
        "position_protocol",
        trains=False,
    ),
    Entry(
        "pictures",
        "PNG files of patch features, attention, clusters and masks; scores nothing",
        "images",
        "pictures",
        trains=False,
    ),
)
PROTOCOLS: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
