"""What goes into a backbone and what comes out: one batch, or a list of batches of several sizes.

Legend: B images, N patches, R registers, D width.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from torch import Tensor

Masks = Sequence[Tensor | None]


class Features(TypedDict):
    """What `forward_features` returns for a batch. All but `x_prenorm` and `masks` are after the last norm."""

    x_norm_clstoken: Tensor  # (B, D)
    x_norm_regtokens: Tensor  # (B, R, D)
    x_norm_patchtokens: Tensor  # (B, N, D)
    x_prenorm: Tensor  # (B, 1 + R + N, D): class token, registers, patches
    masks: Tensor | None  # (B, N), as given
    patch_token_rasa: NotRequired[Tensor]  # (B, N, D) patch tokens without position, where the RASA head was asked for


def as_lists(images: Tensor | Sequence[Tensor], masks: Tensor | Masks | None) -> tuple[Sequence[Tensor], Masks]:
    """A batch is a list of one; no masks are a list of None."""
    if isinstance(images, Tensor):
        if masks is not None and not isinstance(masks, Tensor):
            raise ValueError("one batch of images takes one tensor of masks (B, N), not a list")
        return [images], [masks]
    if not images:
        raise ValueError("the list of images is empty; give at least one batch (B, C, H, W)")
    if masks is None:
        return images, [None] * len(images)
    if isinstance(masks, Tensor) or len(masks) != len(images):
        raise ValueError(f"{len(images)} batches of images take a list of as many masks, each (B, N) or None")
    return images, masks
