"""What the linear probe learns from, step by step: stored features, or features of random crops made on the way.

Step s takes the places s * B … (s + 1) * B - 1 of an `Order`.

Legend: N images, B images of a batch, D width of a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from franca.data.errors import UnreadableImage
from franca.data.pixel_ops import draw, random_resized_crop
from franca.data.random_streams import generator
from franca.data.sources import Source
from franca.distributed import gather_rows, rank, world_size
from franca.eval.context import Context
from franca.eval.errors import EvalError
from franca.eval.protocols.order import Order
from franca.eval.store import ImageFeatures
from franca.eval.tokens import Tokens, class_token, mean_patch

ORDER = "linear order"
CROP_SCALE = [0.08, 1.0]  # least and largest share of the image's area
FLIP = 0.5
TRIED = 100  # images that can't be read, one after another


@dataclass(frozen=True)
class Batch:
    """Tokens of the last blocks, the last one last, and labels; on the device."""

    cls: Tensor  # (B, blocks, D)
    mean_patch: Tensor  # (B, 1, D) of the last block
    labels: Tensor  # (B,)


def stored_batches(
    features: ImageFeatures, labels: Tensor, rows: Tensor, size: int, steps: range, seed: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of the given steps from stored features.

    Args:
        labels: (N,) of the features. rows: (n,) numbers of those to learn from.
        size: B.
    """
    order = Order(len(rows), ORDER, seed)
    for step in steps:
        chosen = rows[order.at(step * size, size)]
        yield Batch(
            features.cls[chosen].to(device).float(),
            features.mean_patch[chosen].to(device).float(),
            labels[chosen].to(device),
        )


def augmented_batches(
    context: Context, source: Source, numbers: Tensor, crop: int, blocks: int, size: int, steps: range, seed: int
) -> Iterator[Batch]:
    """Batches of the given steps from random crops, flipped at random; each process computes a share of every batch.

    Args:
        source: labelled images. numbers: (n,) of those to learn from.
        crop: side in pixels. blocks: how many of the last blocks. size: B.

    Raises:
        EvalError: many images in a row that can't be read.
    """
    share = -(-size // world_size())
    loader = DataLoader(
        _Crops(source, numbers, crop, seed),
        batch_sampler=_Shares(Order(len(numbers), ORDER, seed), size, share, steps),
        num_workers=context.workers,
        generator=torch.Generator(),  # else the loader draws its seed from the process's random state
    )
    for pixels, labels in loader:
        tokens = [_stacked(context.tokens(part, blocks)) for part in pixels.split(context.batch_size)]
        own = [torch.cat(parts) for parts in zip(*tokens, strict=True)] + [labels.to(context.device)]
        yield Batch(*(gather_rows(rows)[:size] for rows in own))


def _stacked(tokens: list[Tokens]) -> tuple[Tensor, Tensor]:
    """Class tokens of some blocks, (b, blocks, D), and the mean patch of the last, (b, 1, D)."""
    return torch.stack([class_token(each) for each in tokens], dim=1), mean_patch(tokens[-1])[:, None]


class _Shares:
    """For each step the places and things of this process; every process has as many."""

    def __init__(self, order: Order, size: int, share: int, steps: range) -> None:
        self.order, self.size, self.share, self.steps = order, size, share, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            things = self.order.at(step * self.size, self.size).tolist()
            own = [min(rank() * self.share + place, self.size - 1) for place in range(self.share)]
            yield [(step * self.size + place, things[place]) for place in own]


class _Crops(Dataset[tuple[Tensor, int]]):
    """(place in the endless row, which image) -> a crop, (C, S, S) uint8, and its label."""

    def __init__(self, source: Source, numbers: Tensor, crop: int, seed: int) -> None:
        self.source, self.numbers, self.crop, self.seed = source, numbers.tolist(), crop, seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, wanted: tuple[int, int]) -> tuple[Tensor, int]:
        place, thing = wanted
        random = generator("linear crop", self.seed, place)
        image, label = self._readable(thing)
        crop = random_resized_crop(image, self.crop, CROP_SCALE, random)
        return crop.flip(-1) if draw(random)[0] < FLIP else crop, label

    def _readable(self, thing: int) -> tuple[Tensor, int]:
        """The image, or the next one that can be read."""
        assert self.source.labels is not None
        for further in range(TRIED):
            number = self.numbers[(thing + further) % len(self.numbers)]
            try:
                return self.source.load(number), self.source.labels[number]
            except UnreadableImage as error:
                reason = error
        raise EvalError(f"{TRIED} training images one after another can't be read, the last: {reason}")
