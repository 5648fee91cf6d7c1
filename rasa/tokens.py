"""What networks return -> a grid of patch features.

Legend: B images, T tokens, h x w patches, D width.
"""

from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from rasa.errors import RasaError

PREFIXES = ("cls_token", "distillation_token", "register_tokens")
MOST_PREFIX_TOKENS = 17  # a class token and 16 registers, where the network doesn't say how many it has


def features_of(model: Callable[..., Any], images: Tensor) -> Any:
    """What a network offers as its features: `forward_features` where it has one (Franca, DINOv2, timm)."""
    forward = getattr(model, "forward_features", model)
    return forward(images)


def prefix_tokens(model: Callable[..., Any]) -> int | None:
    """Class, distillation and register tokens before the patches, of a network of timm, DINOv2 or transformers.

    None for any other, which doesn't say.
    """
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)
    holder = getattr(model, "embeddings", model)
    found = [getattr(holder, name, None) for name in PREFIXES]
    counts = [token.shape[1] for token in found if isinstance(token, Tensor)]
    return sum(counts) if counts else None


def patch_grid(output: Any, side: int, name: str, prefix: int | None = None) -> Tensor:
    """A network's output for square images of `side` pixels -> its patch features (B, h, w, D), fp32.

    Args:
        output: what the network returned.
        side: of the images, in pixels.
        name: of the network, for errors.
        prefix: tokens before the patches in (B, T, D); None: found out.

    Raises:
        RasaError: no tensor of tokens, or tokens that form no square grid.
    """
    patches_alone = isinstance(output, Mapping) and "x_norm_patchtokens" in output
    tokens = _tensor(output["x_norm_patchtokens"] if patches_alone else output, name)
    if tokens.ndim == 4:
        grid = tokens.permute(0, 2, 3, 1)
    elif tokens.ndim == 3 and patches_alone:
        grid = _square(tokens, 0, side, name)
    elif tokens.ndim == 3:
        before = _guess_prefix(tokens.shape[1], side) if prefix is None else prefix
        if not _is_square(tokens.shape[1] - before) and _is_square(tokens.shape[1]):
            before = 0  # it has a class token, but returns patches alone
        grid = _square(tokens, before, side, name)
        _check_divides(grid.shape[1], side, name)
    else:
        raise RasaError(
            f"{name} returned a tensor of shape {tuple(tokens.shape)} for images of {side} x {side} pixels; RASA needs "
            "one token per patch, (B, T, D) or (B, D, h, w), not pooled ones"
        )
    if grid.shape[1] != grid.shape[2] or grid.shape[1] < 2:
        raise RasaError(
            f"{name}: patch tokens of images of {side} x {side} pixels form a grid of {tuple(grid.shape[1:3])}; RASA "
            "needs a square one of at least 2 x 2: change data.size"
        )
    return grid.float()


def _tensor(output: Any, name: str) -> Tensor:
    chosen = getattr(output, "last_hidden_state", output)
    if not isinstance(chosen, Tensor):
        raise RasaError(
            f"{name} returned {type(chosen).__name__}; expected a tensor, a dictionary with x_norm_patchtokens, or an "
            "output with last_hidden_state: wrap it in a function of your own (backbone.kind=callable)"
        )
    return chosen


def _square(tokens: Tensor, prefix: int, side: int, name: str) -> Tensor:
    """(B, T, D) -> (B, s, s, D), the patches behind the prefix."""
    patches = max(tokens.shape[1] - prefix, 0)
    root = isqrt(patches)
    if not _is_square(patches):
        behind = f", {patches} of them behind class token and registers," if prefix else ""
        raise RasaError(
            f"{name} returned {tokens.shape[1]} tokens for images of {side} x {side} pixels{behind} which form no "
            "square grid: RASA needs one token per patch. Is it pooled, or does it drop or merge tokens?"
        )
    return tokens[:, prefix:].unflatten(1, (root, root))


def _is_square(count: int) -> bool:
    return count > 0 and isqrt(count) ** 2 == count


def _guess_prefix(count: int, side: int) -> int:
    """How many of `count` tokens come before the largest square grid of whole patches; 0 where no such grid fits.

    Any number is a square and some more: only few, beside the patches, are taken for a prefix.
    """
    for root in range(isqrt(count), 1, -1):
        prefix = count - root * root
        if side % root == 0 and prefix <= (min(MOST_PREFIX_TOKENS, root + 1) if root > 3 else 2):
            return prefix
    return 0


def _check_divides(root: int, side: int, name: str) -> None:
    if side % root:
        raise RasaError(
            f"{name} gives {root} x {root} patches for images of {side} x {side} pixels, which don't divide them: "
            f"set data.size={root * (side // root)}, or return overlapping patches as maps (B, D, h, w)"
        )
