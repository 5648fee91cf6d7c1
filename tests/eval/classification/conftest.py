"""Made-up features of made-up data sets, behind the interface that the protocols read."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from franca.eval.context import Context
from franca.eval.datasets import OpenedSplit
from franca.eval.datasets.listed import ListedImages
from franca.eval.protocol import Task
from franca.eval.store import ImageFeatures

Planted = Callable[..., tuple[Context, Task]]


class PlantedStore:
    """Hands out features by the name of the split; images that ``unreadable`` lists have none."""

    def __init__(self, features: dict[str, tuple[Tensor, Tensor]], unreadable: dict[str, list[int]]) -> None:
        self.features, self.unreadable = features, unreadable

    def images(self, split: OpenedSplit, view: object, blocks: int = 1) -> ImageFeatures:
        cls, mean_patch = self.features[split.split]
        index = torch.tensor([n for n in range(len(cls)) if n not in self.unreadable.get(split.split, [])])
        labels = torch.tensor(split.source.labels)[index]
        parts = [tensor[index][:, tensor.shape[1] - blocks :].half() for tensor in (cls, mean_patch)]
        return ImageFeatures(*parts, index=index, labels=labels)


def split_of(name: str, labels: list[int], classes: int, mean_per_class: bool = False, **options) -> OpenedSplit:
    names = [f"{number}.png" for number in range(len(labels))]
    source = ListedImages(Path("/nowhere"), names, labels, [f"class {n}" for n in range(classes)], **options)
    return OpenedSplit("made_up", name, source, f"hash of {name}", mean_per_class)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Makes a context and a task of given features: {"train": (cls, mean_patch), …}, each (N, blocks, D)."""

    def make(
        features: dict[str, tuple[Tensor, Tensor]],
        labels: dict[str, list[int]],
        classes: int,
        slices: tuple[int, ...] = (1,),
        unreadable: dict[str, list[int]] | None = None,
        output: Path = tmp_path,
        mean_per_class: bool = False,
        train: dict[str, object] | None = None,
        test: dict[str, object] | None = None,
    ) -> tuple[Context, Task]:
        backbone = SimpleNamespace(hash="planted", blocks=4, name="planted features")
        engine = SimpleNamespace(backbone=backbone, device=torch.device("cpu"), autocast=None)
        output.mkdir(exist_ok=True)
        store = PlantedStore(features, unreadable or {})
        task = Task(
            split_of("train", labels["train"], classes, mean_per_class, **(train or {})),
            split_of("test", labels["test"], classes, mean_per_class, **(test or {})),
        )
        return Context(engine, store, output, slices=slices), task  # type: ignore[arg-type]

    return make


@pytest.fixture
def one_hot() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes features whose class token names the class: in the first places alone, with other features behind."""

    def make(labels: list[int], classes: int, width: int = 16, blocks: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        cls = 0.05 * torch.randn(len(labels), blocks, width, generator=random)
        cls[torch.arange(len(labels)), :, torch.tensor(labels)] += 1
        return cls, 0.05 * torch.randn(len(labels), blocks, width, generator=random)

    return make


@pytest.fixture
def noise() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes features that know nothing."""

    def make(count: int, width: int = 16, blocks: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(count, blocks, width, generator=random), torch.randn(count, blocks, width, generator=random)

    return make
