"""Position bias: what patch features say about where the patch lies (paper Sec. 2.3 and Fig. 6).

Fresh linear predictors of row and column are fitted on some images and scored on others; their error is given in sides
of the image, beside that of always naming the centre. Patches of these others are clustered, and the entropy of the
positions in each cluster is compared with that of as many patches drawn without regard to position: 1 means that
clusters say nothing about the place. Things have their usual places as well, so compare models on the same images.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from franca.distributed import is_main
from franca.eval import figures
from franca.eval.context import Context
from franca.eval.datasets import OpenedSplit
from franca.eval.errors import EvalError
from franca.eval.parts import evenly_spaced
from franca.eval.protocol import Protocol, Task
from franca.eval.protocols.position_bias import Prediction, cluster_entropy, predict_position, suitable_clusters
from franca.eval.protocols.position_entropy import PositionEntropy
from franca.eval.result import Score
from franca.eval.views import CentralSquare

logger = logging.getLogger(__name__)

FEWEST = 4  # images: one to fit, one to choose the ridge, two to score
ENTROPIES: dict[str, tuple[Callable[[PositionEntropy], float], str]] = {
    "cluster_entropy": (lambda entropy: entropy.mean, "of chance"),
    "cluster_entropy_by_patch": (lambda entropy: entropy.weighted_mean, "of chance"),  # clusters weigh as their sizes
    "cluster_entropy_absolute": (lambda entropy: entropy.normalised[entropy.size > 0].mean().item(), "of log N"),
}


@dataclass
class PositionBiasConfig:
    """Settings of the paper, as far as it gives them.

    images: at most so many, spread over the set; half of them to fit predictors, the other half for everything else.
    size: side of the central square in pixels. clusters: at most so many; fewer where there are not 50 patches for
    each. iterations: of k-means, at most. seeds: of k-means, one entropy each.
    """

    images: int = 1000
    size: int = 448
    clusters: int = 65_536
    iterations: int = 50
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        for name, least in (("images", FEWEST), ("size", 1), ("clusters", 2), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: name one or more different seeds")


@dataclass(frozen=True)
class Slice:
    """What was measured on one slice of the features."""

    prediction: Prediction
    entropies: list[PositionEntropy]  # one per seed
    clusters: int


def run(context: Context, task: Task, config: PositionBiasConfig) -> Iterator[Score]:
    """Scores of every slice; figures of the first one, the whole feature unless others are asked for."""
    features = context.store.patches(some_images(task.test, config.images), CentralSquare(config.size)).patches
    if not is_main():
        return
    for number, (name, width) in enumerate(context.widths(features.shape[-1]).items()):
        found = measure(context, features[..., :width], config)
        yield from scores(found, config, name)
        if number == 0:
            draw(context, found)


def some_images(split: OpenedSplit, most: int) -> OpenedSplit:
    """At most so many images of a split, spread over it."""
    source = evenly_spaced(split.source, most)
    return split if source is split.source else split.changed(source, f"{most} images")


def measure(context: Context, features: Tensor, config: PositionBiasConfig) -> Slice:
    """Position bias of features (I, h, w, D): every other image is scored, the rest fits predictors."""
    if len(features) < FEWEST:
        raise EvalError(f"position bias needs {FEWEST} images, and {len(features)} can be read: name a larger set")
    first, second, scored = features[::4], features[2::4], features[1::2]
    clusters = suitable_clusters(scored, config.clusters)
    try:
        prediction = predict_position(first, second, scored, context.device)
        entropies = [
            cluster_entropy(scored, clusters, config.iterations, seed, context.device)
            for seed in context.track(config.seeds, f"k-means, {clusters} clusters")
        ]
    except (ValueError, RuntimeError) as error:  # RuntimeError: a fit that doesn't settle
        raise EvalError(f"position bias can't be measured: {error}") from error
    return Slice(prediction, entropies, clusters)


def scores(found: Slice, config: PositionBiasConfig, name: str) -> Iterator[Score]:
    """Errors of predictors, then entropies, mean over seeds."""
    side, size = "of a side", str(config.size)
    for kind, told in (("linear", found.prediction.linear), ("sigmoid", found.prediction.sigmoid)):
        settings = {"predictor": kind}
        yield Score("position_rmse", told.rmse, size, settings, name, side, better="lower")
        yield Score("position_r2", told.r2, size, settings, name, "", better="lower")
    yield Score("position_rmse_by_chance", found.prediction.linear.chance_rmse, size, slice=name, unit=side, better="")
    for metric, (of, unit) in ENTROPIES.items():
        values = tuple(of(entropy) for entropy in found.entropies)
        mean = sum(values) / len(values)
        yield Score(metric, mean, size, {"clusters": found.clusters}, name, unit, values, tuple(config.seeds))


def draw(context: Context, found: Slice) -> None:
    """Three figures into the folder for output, where matplotlib is installed."""
    if not figures.can_draw():
        logger.warning("no figures: they need matplotlib (pip install 'franca[eval]')")
        return
    from franca.eval.figures.positions import cluster_maps_figure, entropy_figure, prediction_figure

    name = figures.short_name(context.backbone.name)
    entropies = {name: found.entropies[0]}
    predictions = {"linear predictor": found.prediction.linear, "sigmoid predictor": found.prediction.sigmoid}
    entropy_figure(context.output / "entropy.png", entropies, "Entropy of patch positions per cluster")
    cluster_maps_figure(context.output / "clusters.png", entropies, f"Where the most placed clusters lie: {name}")
    prediction_figure(context.output / "predictions.png", predictions, f"Where the patches seem to lie: {name}")


PROTOCOL = Protocol(config=PositionBiasConfig, run=run)
