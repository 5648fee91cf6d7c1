"""Small pairs and batches that the objective's tests share."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.data.batch import PretrainBatch
from franca.models import MatryoshkaHead, VisionTransformer
from franca.objective import Encoder, StudentTeacher

PATCH, GLOBAL, LOCAL, WIDTH = 4, 16, 8, 16
N_PATCHES = (GLOBAL // PATCH) ** 2


@pytest.fixture
def form_batch() -> Callable[..., PretrainBatch]:
    """`form_batch(global_crops, local_crops, masks, padding)`: indices and weights as the masks ask for them."""
    return _form_batch


def _form_batch(global_crops: Tensor, local_crops: Tensor | None, masks: Tensor, padding: int) -> PretrainBatch:
    indices = masks.flatten().nonzero().flatten()
    weights = (1 / masks.sum(dim=1).clamp(min=1)).repeat_interleave(masks.sum(dim=1))
    return PretrainBatch(
        global_crops,
        local_crops,
        masks,
        mask_indices=torch.cat([indices, indices.new_zeros(padding)]),
        mask_weights=torch.cat([weights, weights.new_zeros(padding)]),
        mask_valid=torch.arange(len(indices) + padding) < len(indices),
        n_images=len(global_crops) // 2,
    )


@pytest.fixture
def make_batch() -> Callable[..., PretrainBatch]:
    def make(
        n_images: int = 4, n_local: int | None = 2, masked: bool = True, padding: int = 3, seed: int = 0
    ) -> PretrainBatch:
        generator = torch.Generator().manual_seed(seed)
        masks = torch.zeros(2 * n_images, N_PATCHES, dtype=torch.bool)
        if masked:  # every second crop; another number of patches each
            for crop in range(0, 2 * n_images, 2):
                masks[crop, torch.randperm(N_PATCHES, generator=generator)[: 3 + crop]] = True
        local_crops = None
        if n_local is not None:
            local_crops = torch.randn(n_local * n_images, 3, LOCAL, LOCAL, generator=generator)
        global_crops = torch.randn(2 * n_images, 3, GLOBAL, GLOBAL, generator=generator)
        return _form_batch(global_crops, local_crops, masks, padding)

    return make


@pytest.fixture
def make_pair() -> Callable[..., StudentTeacher]:
    """Student and teacher with different weights, large enough to make every loss differ from the uniform one."""

    def encoder(nesting: tuple[float, ...], **backbone: float) -> Encoder:
        heads = [
            MatryoshkaHead(WIDTH, prototypes=count, nesting=nesting, hidden_dim=24, bottleneck_dim=8)
            for count in (32, 16)
        ]
        network = VisionTransformer(
            img_size=GLOBAL, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, init_values=1.0, **backbone
        )
        return Encoder(network, *heads)

    def make(nesting: tuple[float, ...] = (1 / 4, 1 / 2, 1), seed: int = 0, **backbone: float) -> StudentTeacher:
        torch.manual_seed(seed)
        pair = StudentTeacher(encoder(nesting, **backbone), encoder(nesting))
        for parameter in pair.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return pair

    return make


@pytest.fixture(scope="session")
def losses(parity_dir: Path) -> Mapping[str, np.ndarray]:
    with np.load(parity_dir / "losses.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def levels(losses: Mapping[str, np.ndarray]) -> Callable[[str], list[Tensor]]:
    """`levels("ibot/grad")`: the tensors ibot/grad/0, ibot/grad/1, ... of losses.npz."""
    n_levels = len(losses["prototypes"])
    return lambda prefix: [torch.from_numpy(losses[f"{prefix}/{level}"]) for level in range(n_levels)]
