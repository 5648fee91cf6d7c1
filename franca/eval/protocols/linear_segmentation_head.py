"""The head of linear segmentation: batch norm and one linear layer on the features of a patch.

The linear layer acts on patches and its output is resized; that equals resizing the features first, as bilinear weights
sum to 1, and costs a small part of it.

Legend: B images, h x w patches, D features, S x S pixels of a mask, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from franca.eval.datasets import VOID


class LinearHead(nn.Module):
    """Class scores of patches from their first ``width`` features."""

    def __init__(self, width: int, classes: int, generator: Generator) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, h, w, D or more) fp32 -> (B, C, h, w)."""
        rows = self.norm(patches[..., : self.width].flatten(0, 2))
        return self.linear(rows).unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)


def build_heads(widths: Mapping[str, int], classes: int, generators: Mapping[str, Generator]) -> nn.ModuleDict:
    """A head for each slice by its name; each has its own generator, so that none depends on which others there are."""
    return nn.ModuleDict({name: LinearHead(width, classes, generators[name]) for name, width in widths.items()})


def enlarge(scores: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width), bilinear."""
    return interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def accumulate_gradients(scores: Tensor, masks: Tensor) -> float:
    """Backward of the cross-entropy summed over the pixels that aren't void and divided by the number of all pixels.

    So mmsegmentation has it unless told otherwise (avg_non_ignore=False), and DINOv2 with it: a crop that is mostly
    padding teaches less than a full one. Returns that value.

    One image is enlarged at a time: all together would take gigabytes.

    Args:
        scores: (B, C, h, w) of a head. masks: (B, S, S) uint8.
    """
    small = scores.detach().requires_grad_()
    total = 0.0
    for image, mask in zip(small.split(1), masks.split(1), strict=True):
        enlarged = enlarge(image, mask.shape[-2], mask.shape[-1])
        loss = cross_entropy(enlarged, mask.long(), ignore_index=VOID, reduction="sum") / masks.numel()
        loss.backward()
        total += float(loss.detach())
    assert small.grad is not None
    scores.backward(small.grad)
    return total


@torch.no_grad()
def class_scores(heads: nn.ModuleDict, patches: Tensor) -> dict[str, Tensor]:
    """(B, h, w, D) -> (B, C, h, w) of each slice."""
    return {name: head(patches) for name, head in heads.items()}
