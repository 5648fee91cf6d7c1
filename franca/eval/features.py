"""Features of a frozen model, one row per image, in the order of the source."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.baselines import THUMBNAIL_SIDE, thumbnail
from franca.eval.images import EvalImages


@dataclass(frozen=True)
class Features:
    """Rows belong together: row i of every tensor is one image. fp32, on the CPU."""

    cls: Tensor  # (N, D) class token after the last norm
    mean_patch: Tensor  # (N, D) mean over the patch tokens after the last norm
    index: Tensor  # (N,) int64: number of the image in its source
    labels: Tensor | None  # (N,) int64


@torch.no_grad()
def extract_features(
    model: nn.Module,
    images: EvalImages,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    autocast: torch.dtype | None = None,
) -> Features:
    """Features of every readable image.

    Args:
        model: has ``forward_features(images)`` with ``x_norm_clstoken`` (B, D) and ``x_norm_patchtokens`` (B, N, D).
            It is put in eval mode for the time of the call, and must be on ``device`` already.
        images: what to look at. Unreadable ones are left out of all tensors and listed in ``images.skipped``.
        mean, std: of the pixel values in [0, 1], per channel; those of the training.
        autocast: compute in this type, for example torch.bfloat16; None: in the type of the parameters.

    Neither batch size nor worker count changes a row, beyond rounding; no random state is used.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    kind = torch.device(device).type
    with in_eval_mode(model), torch.autocast(kind, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        for batch in images.batches(batch_size):
            out = model.forward_features(normalise(batch.pixels.to(device), mean, std))  # type: ignore[operator]
            mean_patch = out["x_norm_patchtokens"].float().mean(dim=1)
            parts.append((out["x_norm_clstoken"].float().cpu(), mean_patch.cpu(), batch.index))
    cls, mean_patch, index = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    labels = images.labels
    return Features(cls, mean_patch, index, None if labels is None else labels[index])


def thumbnails(images: EvalImages, side: int = THUMBNAIL_SIDE) -> Tensor:
    """The images themselves as features, (N, C * side * side): what pixels give without any learning."""
    return torch.cat([thumbnail(batch.pixels, side) for batch in images.batches()]) / 255


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) -> fp32 with the given mean and standard deviation taken out per channel."""
    shift, scale = (pixels.new_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the earlier mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
