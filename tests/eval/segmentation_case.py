"""A small segmentation data set whose classes are colours, and a backbone that sees the mean colour of each patch."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from franca.data.errors import UnreadableImage
from franca.eval.backbones import Backbone
from franca.eval.context import Context, Engine, track
from franca.eval.datasets import VOID, OpenedSplit
from franca.eval.protocol import Task
from franca.eval.store import FeatureStore

PATCH = 14
COLOURS = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]], dtype=torch.uint8)


class Stripes:
    """Vertical stripes, one patch wide, of random classes; class 0 is the commonest. Pixels near borders are void."""

    labels = None

    def __init__(self, count: int, seed: int, height: int = 28, width: int = 56, broken: tuple[int, ...] = ()) -> None:
        self.classes = ["red", "green", "blue", "white"]
        self.broken = broken
        chances = torch.tensor([0.5, 0.2, 0.2, 0.1]).expand(count, -1)
        random = torch.Generator().manual_seed(seed)
        stripes = chances.multinomial(width // PATCH, replacement=True, generator=random)
        stripes[0, :4] = torch.arange(4)[: stripes.shape[1]]  # every class is somewhere
        self.masks = stripes.repeat_interleave(PATCH, dim=1)[:, None].expand(-1, height, -1)

    def __len__(self) -> int:
        return len(self.masks)

    def name(self, index: int) -> str:
        return f"stripes {index}"

    def load(self, index: int) -> Tensor:
        if index in self.broken:
            raise UnreadableImage(self.name(index), "cut off")
        return COLOURS[self.masks[index]].permute(2, 0, 1)

    def mask(self, index: int) -> Tensor:
        mask = self.masks[index].to(torch.uint8).clone()
        place = torch.arange(mask.shape[1]) % PATCH
        mask[:, (place < 2) | (place >= PATCH - 2)] = VOID
        return mask


def mean_colours(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / 14, W / 14)."""
    return avg_pool2d(images, PATCH)


def classes(images: Tensor) -> Tensor:
    """(B, 4, H / 14, W / 14): 1 for the class whose colour is nearest."""
    colours = (COLOURS.float() / 255 - 0.5) / 0.25
    distance = (mean_colours(images)[:, None] - colours[:, :, None, None]).square().sum(dim=2)
    return one_hot(distance.argmin(dim=1), 4).permute(0, 3, 1, 2).float()


def nothing(images: Tensor) -> Tensor:
    """The same for every patch."""
    return torch.ones_like(avg_pool2d(images, PATCH))


def random_features(images: Tensor) -> Tensor:
    """(B, 8, H / 14, W / 14): colours through a fixed random layer, eight numbers of which any are informative."""
    weights = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return torch.einsum("dc,bchw->bdhw", weights, mean_colours(images)).tanh()


def stripes_task(train: int = 8, test: int = 5, broken: tuple[int, ...] = (), train_width: int = 56) -> Task:
    return Task(
        OpenedSplit("stripes", "train", Stripes(train, seed=0, broken=broken, width=train_width), "train"),
        OpenedSplit("stripes", "test", Stripes(test, seed=1), "test"),
    )


def make_context(
    folder: Path,
    function: Callable[[Tensor], Tensor] = mean_colours,
    batch_size: int = 3,
    workers: int = 0,
    slices: tuple[int, ...] = (1,),
) -> Context:
    engine = Engine(Backbone(function, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(
        folder / "features",
        function.__name__,
        engine.tokens,
        track,
        stored_as="fp32",
        batch_size=batch_size,
        workers=workers,
    )
    return Context(engine, store, folder, batch_size, workers, slices)
