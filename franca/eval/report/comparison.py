"""The trained network beside the same network untrained and the pixels themselves, by nearest neighbours."""

from dataclasses import dataclass

from torch import Tensor, nn

from franca.data.loader import DataConfig
from franca.eval.features import Features, extract_features, thumbnails
from franca.eval.protocols.knn import knn_accuracy, knn_by_width
from franca.eval.report.task import Task

FEATURES = ("class token", "mean patch")


@dataclass(frozen=True)
class Comparison:
    """Percentages of right answers."""

    trained: dict[str, dict[int, float]]  # feature -> width -> percent, widest first
    untrained: dict[str, dict[int, float]]
    pixels: float  # 8 x 8 thumbnails
    chance: float
    queries: int  # images asked about, unreadable ones left out
    memory: int

    @property
    def best_feature(self) -> str:
        """The feature with which the trained network scores highest at full width."""
        return max(FEATURES, key=lambda feature: full(self.trained[feature]))


def full(by_width: dict[int, float]) -> float:
    """The score at the greatest width."""
    return by_width[max(by_width)]


def compare(trained: nn.Module, untrained: nn.Module, task: Task, data: DataConfig) -> Comparison:
    """Score both networks and the pixels on the same images with the same k."""
    scores, memory, queries = {}, None, None
    for name, model in (("trained", trained), ("untrained", untrained)):
        memory, queries = (
            extract_features(model, images, mean=data.crops.mean, std=data.crops.std)
            for images in (task.memory, task.queries)
        )
        scores[name] = {
            "class token": knn_by_width(memory.cls, classes_of(memory), queries.cls, classes_of(queries), task.k),
            "mean patch": knn_by_width(
                memory.mean_patch, classes_of(memory), queries.mean_patch, classes_of(queries), task.k
            ),
        }
    assert memory is not None
    assert queries is not None
    return Comparison(
        **scores,
        pixels=_pixel_accuracy(task, classes_of(memory), classes_of(queries)),
        chance=task.chance,
        queries=len(queries.index),
        memory=len(memory.index),
    )


def classes_of(features: Features) -> Tensor:
    """Class of each row, (N,); without labels every image is a class of its own."""
    return features.index if features.labels is None else features.labels


def _pixel_accuracy(task: Task, memory_classes: Tensor, query_classes: Tensor) -> float:
    """k-NN on thumbnails less the memory's mean thumbnail: the strongest simple form of them."""
    memory, queries = thumbnails(task.memory), thumbnails(task.queries)
    centre = memory.mean(dim=0)
    return knn_accuracy(memory - centre, memory_classes, queries - centre, query_classes, (task.k,))[task.k]
