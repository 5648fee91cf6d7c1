"""Small sources and networks for the tests of the evaluation."""

import pytest
import torch
from torch import Tensor

from franca.data.errors import UnreadableImage
from franca.models import VisionTransformer


class ListSource:
    """Images from a list; None stands for a file that can't be read."""

    def __init__(self, images: list[Tensor | None], labels: list[int] | None = None, classes: int = 0) -> None:
        self.images, self.labels = images, labels
        self.classes = [f"class {number}" for number in range(classes or (max(labels) + 1 if labels else 0))]
        self.loads = 0

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Tensor:
        self.loads += 1
        image = self.images[index]
        if image is None:
            raise UnreadableImage(self.name(index), "cut off")
        return image

    def name(self, index: int) -> str:
        return f"image {index}"


@pytest.fixture
def make_source():
    """Makes a source of images of different sizes; ``broken`` lists the numbers of unreadable ones."""

    def make(count: int, classes: int = 0, broken: tuple[int, ...] = (), seed: int = 0) -> ListSource:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(28, 60, (count, 2), generator=generator).tolist()
        images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
        kept = [None if number in broken else image for number, image in enumerate(images)]
        return ListSource(kept, [number % classes for number in range(count)] if classes else None)

    return make


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=28, patch_size=14, embed_dim=16, depth=2, num_heads=2, init_values=1.0).eval()
