"""The two ways in which linear segmentation looks at images: random crops and windows, or stored whole images.

Legend: N images, h x w patches each, D features, B images of a batch, S side of a crop.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from franca.data.errors import UnreadableImage
from franca.eval.context import Context
from franca.eval.datasets import SegmentationSource
from franca.eval.protocols.linear_segmentation_crops import ORDER, CropSettings, crop_batches
from franca.eval.protocols.linear_segmentation_head import class_scores, enlarge
from franca.eval.protocols.linear_segmentation_windows import WindowSettings, predict
from franca.eval.protocols.order import Order
from franca.eval.store import PatchFeatures
from franca.eval.views import Squash

Predictions = Iterator[tuple[Tensor, dict[str, Tensor]]]  # mask (H, W) uint8 and by slice (H, W) int64, of each image


class Side(Protocol):
    """What heads are trained on, and how they are asked about test images."""

    images: int  # in training
    width: int  # D

    def batches(self, seed: int, batch: int, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, h, w, D) fp32 and masks (B, S, S) uint8 of each step; B = 0 where all images are broken."""
        ...

    def tests(self) -> int:
        """Number of test images."""
        ...

    def predictions(self, heads: nn.ModuleDict, first: int) -> Predictions:
        """Of the test images from number ``first`` on, those that can't be read with an empty mask."""
        ...


class Windows:
    """Random crops in training, overlapping windows in the test: features are computed on the way."""

    def __init__(
        self,
        context: Context,
        train: SegmentationSource,
        test: SegmentationSource,
        crops: CropSettings,
        windows: WindowSettings,
    ) -> None:
        self.context, self.train, self.test, self.crops, self.settings = context, train, test, crops, windows
        self.images = len(train)
        sample = torch.zeros(1, context.backbone.channels, crops.size, crops.size, dtype=torch.uint8)
        self.width = self._features(sample).shape[-1]

    def batches(self, seed: int, batch: int, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Side.batches`."""
        for pixels, masks in crop_batches(self.train, self.crops, seed, batch, steps, self.context.workers):
            features = self._features(pixels) if len(pixels) else pixels
            yield features, masks.to(self.context.device)

    def tests(self) -> int:
        """Number of test images."""
        return len(self.test)

    def predictions(self, heads: nn.ModuleDict, first: int) -> Predictions:
        """As `Side.predictions`."""
        loader = DataLoader(
            _Whole(self.test),
            batch_size=None,
            sampler=range(first, len(self.test)),
            num_workers=self.context.workers,
            generator=torch.Generator(),  # else the loader draws its seed from the run's random state
        )
        for image, mask in loader:
            if not image.numel():
                yield mask, dict.fromkeys(heads, mask.long())
                continue
            shape = (mask.shape[0], mask.shape[1])
            yield (
                mask,
                predict(
                    image,
                    shape,
                    lambda pixels: class_scores(heads, self._features(pixels)),
                    self.settings,
                    self.context.batch_size,
                ),
            )

    def _features(self, pixels: Tensor) -> Tensor:
        return self.context.tokens(pixels)[-1].patches


class WholeImages:
    """Stored features of whole images, squashed to a square."""

    def __init__(
        self,
        context: Context,
        train: SegmentationSource,
        train_features: PatchFeatures,
        test: SegmentationSource,
        test_features: PatchFeatures,
        size: int,
    ) -> None:
        self.context, self.test, self.stored, self.queries = context, test, train_features, test_features
        self.images, self.width = len(train_features.index), train_features.patches.shape[-1]
        view = Squash(size)
        masks = context.track(train_features.index.tolist(), "training masks")
        self.masks = torch.stack([view.mask(train.mask(index)) for index in masks])

    def batches(self, seed: int, batch: int, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """As `Side.batches`."""
        device, order = self.context.device, Order(self.images, ORDER, seed)
        for step in steps:
            rows = order.at(step * batch, batch)
            yield self.stored.patches[rows].to(device).float(), self.masks[rows].to(device)

    def tests(self) -> int:
        """Number of test images."""
        return len(self.queries.index)

    def predictions(self, heads: nn.ModuleDict, first: int) -> Predictions:
        """As `Side.predictions`."""
        for place in range(first, self.tests()):
            mask = self.test.mask(int(self.queries.index[place]))
            scores = class_scores(heads, self.queries.patches[place : place + 1].to(self.context.device).float())
            yield mask, {name: enlarge(grid, *mask.shape)[0].argmax(dim=0).cpu() for name, grid in scores.items()}


class _Whole(Dataset[tuple[Tensor, Tensor]]):
    """Image (3, H, W) and mask (H, W) by number; both empty where they can't be read."""

    def __init__(self, source: SegmentationSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            return self.source.load(index), self.source.mask(index)
        except UnreadableImage:
            return torch.empty(0), torch.empty(0, 0, dtype=torch.uint8)
