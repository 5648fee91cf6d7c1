"""Features in which position was planted, small networks of every library, and sources of drawn images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from franca.data.errors import UnreadableImage
from franca.eval.protocols.position import grid_positions
from franca.hub import save_teacher
from tests.small_networks import build_network


@dataclass(frozen=True)
class Planted:
    """Features (I, h, w, D) = position + content + noise, in directions that are orthogonal to one another."""

    features: Tensor
    position: Tensor  # (2, D) orthonormal: the directions of row and column
    content: Tensor  # (4, D) orthonormal


def plant(images: int = 120, side: int = 6, width: int = 24, strength: float = 2.0, seed: int = 0) -> Planted:
    """Directions depend on the width alone, so that another seed gives other images of the same network."""
    directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))[0]
    draws = torch.Generator().manual_seed(seed)
    offsets = (grid_positions(side, side).float() - 0.5).view(side, side, 2)
    of_image = torch.randn(images, 1, 1, 4, generator=draws) + torch.randn(images, side, side, 4, generator=draws)
    noise = 0.3 * torch.randn(images, side, side, width, generator=draws)
    features = strength * offsets @ directions[:2] + of_image @ directions[2:6] + noise
    return Planted(features, directions[:2], directions[2:6])


@pytest.fixture(scope="session")
def planted() -> Callable[..., Planted]:
    """`planted(images=…, strength=…, seed=…)`."""
    return plant


@pytest.fixture(scope="session")
def network() -> Callable[..., nn.Module]:
    """`network("franca" | "timm" | "transformers", registers=…)`."""
    return build_network


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher file of a network whose patches know their place."""
    model = build_network("franca")
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(tmp_path / "teacher.pth", state, {"arch": "custom", "backbone": model.config})
    return tmp_path / "teacher.pth"


@dataclass
class DrawnImages:
    """A source of noise images (3, 40, 48); those whose number is in `broken` can't be read."""

    count: int = 20
    broken: set[int] = field(default_factory=set)
    classes: list[str] = field(default_factory=list)
    labels: None = None

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def load(self, index: int) -> Tensor:
        if index in self.broken:
            raise UnreadableImage(self.name(index), "cut off")
        return torch.randint(0, 256, (3, 40, 48), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)


@pytest.fixture
def drawn_images() -> type[DrawnImages]:
    return DrawnImages
