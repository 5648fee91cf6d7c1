"""k-NN during training: the images stay in memory, so that each evaluation costs forward passes only."""

from collections.abc import Sequence

import torch
from torch import nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.data.sources import Source
from franca.eval.features import Features, extract_features
from franca.eval.images import EvalImages
from franca.eval.parts import evenly_spaced
from franca.eval.protocols.knn import knn_accuracy
from franca.eval.views import CentralSquare


class OnlineKNN:
    """Scores a model by k-NN of labelled test images among labelled training images.

    Called with a model, it returns percentages: ``knn_cls@20`` (class token) and ``knn_patch@20`` (mean patch).

    Args:
        train_source, test_source: labelled sources with the same classes.
        size: side of the images in pixels, a multiple of the model's patch.
        ks: numbers of neighbours.
        batch_size, device, mean, std, autocast: as `extract_features`.
        workers: processes that decode the images, the first time.
        max_images: at most so many of each set, evenly spaced over it; 0: all.
        cache_bytes: memory for both sets together. Sets that don't fit are decoded each time.

    Raises:
        ValueError: a source without labels or with other classes than the other, or too few images for k.
    """

    def __init__(
        self,
        train_source: Source,
        test_source: Source,
        size: int,
        ks: Sequence[int] = (20,),
        batch_size: int = 128,
        device: str | torch.device = "cpu",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        autocast: torch.dtype | None = None,
        workers: int = 0,
        max_images: int = 0,
        cache_bytes: int = 2 << 30,
    ) -> None:
        if max_images:
            train_source, test_source = (evenly_spaced(source, max_images) for source in (train_source, test_source))
        _check(train_source, test_source, ks)
        self.train_images = EvalImages(train_source, CentralSquare(size), workers=workers, cache_bytes=cache_bytes // 2)
        self.test_images = EvalImages(test_source, CentralSquare(size), workers=workers, cache_bytes=cache_bytes // 2)
        self.ks, self.batch_size, self.device, self.autocast = tuple(ks), batch_size, device, autocast
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Scores of ``model`` in percent. Its mode and the random state are left as they were."""
        train, test = self._features(model, self.train_images), self._features(model, self.test_images)
        assert train.labels is not None
        assert test.labels is not None
        scores: dict[str, float] = {}
        for name, memory, queries in (("cls", train.cls, test.cls), ("patch", train.mean_patch, test.mean_patch)):
            found = knn_accuracy(memory, train.labels, queries, test.labels, self.ks)
            scores |= {f"knn_{name}@{k}": score for k, score in found.items()}
        return scores

    def _features(self, model: nn.Module, images: EvalImages) -> Features:
        return extract_features(
            model, images, self.batch_size, self.device, mean=self.mean, std=self.std, autocast=self.autocast
        )


def _check(train_source: Source, test_source: Source, ks: Sequence[int]) -> None:
    for source in (train_source, test_source):
        if source.labels is None:
            raise ValueError("k-NN needs labels: give a folder with one subfolder per class")
    if train_source.classes != test_source.classes:
        differing = sorted(set(train_source.classes) ^ set(test_source.classes))
        raise ValueError(f"k-NN between sets of different classes; only in one of them: {', '.join(differing[:8])}")
    if not ks or min(ks) < 1 or max(ks) > len(train_source):
        raise ValueError(f"k={list(ks)} with {len(train_source)} training images: choose from 1 to {len(train_source)}")
