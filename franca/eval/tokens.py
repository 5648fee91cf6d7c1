"""What networks return -> a class token and a grid of patch features.

Legend: B images of H x W pixels, T tokens, h x w patches, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from franca.eval.errors import EvalError

PREFIXES = ("cls_token", "distillation_token", "register_tokens")
MOST_PREFIX_TOKENS = 17  # a class token and 16 registers, where the network doesn't say how many it has

Size = tuple[int, int]  # height and width of the images in pixels


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch after one block and the network's last norm, fp32."""

    cls: Tensor | None  # (B, D); None: the network has no class token
    patches: Tensor  # (B, h, w, D)


def class_token(tokens: Tokens) -> Tensor:
    """(B, D); of a network without one the mean patch."""
    return mean_patch(tokens) if tokens.cls is None else tokens.cls


def mean_patch(tokens: Tokens) -> Tensor:
    """(B, h, w, D) -> (B, D)."""
    return tokens.patches.mean(dim=(1, 2))


def prefix_tokens(model: Callable[..., Any]) -> int | None:
    """Class, distillation and register tokens before the patches, of a network of timm, DINOv2 or transformers.

    None for any other, which doesn't say.
    """
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)
    counts = [token.shape[1] for name in PREFIXES if (token := _parameter(model, name)) is not None]
    return sum(counts) if counts else None


def has_class_token(model: Callable[..., Any]) -> bool:
    """Whether the first token of such a network is a class token."""
    return bool(getattr(model, "has_class_token", False)) or _parameter(model, "cls_token") is not None


def patch_size_of(model: Callable[..., Any]) -> int | None:
    """Side in pixels of the square that a network makes one token of; None where it doesn't say, or it isn't square."""
    if hasattr(model, "feature_info") and not hasattr(model, "num_prefix_tokens"):  # a pyramid of timm: its last maps
        return int(model.feature_info[-1]["reduction"])
    embed = getattr(model, "patch_embed", None)
    if embed is not None and hasattr(embed, "feat_ratio"):  # timm, whose hybrids have patches of maps
        stated = embed.feat_ratio(as_scalar=False)
    else:
        places = (model, embed, getattr(model, "config", None))
        stated = next((found for place in places if (found := getattr(place, "patch_size", None)) is not None), None)
    if isinstance(stated, tuple | list):
        return int(stated[0]) if len(set(stated)) == 1 else None
    return stated if isinstance(stated, int) else None


def read_tokens(
    output: Any, size: Size, name: str, prefix: int | None = None, patch_size: int | None = None, cls: bool = True
) -> Tokens:
    """A network's output -> its tokens.

    Args:
        output: (B, T, D) tokens with the patches last (class token and registers before them), (B, D, h, w) maps, a
            dictionary with `x_norm_patchtokens` and maybe `x_norm_clstoken` (Franca, DINOv2), or an object with
            `last_hidden_state` (transformers).
        size: of the images.
        name: of the network, for errors.
        prefix: tokens before the patches in (B, T, D); None: found out.
        patch_size: of the network; None: found out, for square images.
        cls: the first of the tokens before the patches is a class token.

    Raises:
        EvalError: no tensor of tokens, or tokens that form no grid.
    """
    if isinstance(output, Mapping) and "x_norm_patchtokens" in output:
        first = output.get("x_norm_clstoken")
        patches = _tensor(output["x_norm_patchtokens"], name)
        grid = _from_maps(patches, size, name) if patches.ndim == 4 else _grid(patches, size, name, 0, patch_size)[0]
        return Tokens(first.float() if cls and isinstance(first, Tensor) else None, grid.float())
    tokens = _tensor(output, name)
    if tokens.ndim == 4:
        return Tokens(None, _from_maps(tokens, size, name).float())
    grid, before = _grid(tokens, size, name, prefix, patch_size)
    return Tokens(tokens[:, 0].float() if before and cls else None, grid.float())


def _parameter(model: Callable[..., Any], name: str) -> Tensor | None:
    found = getattr(getattr(model, "embeddings", model), name, None)
    return found if isinstance(found, Tensor) else None


def _tensor(output: Any, name: str) -> Tensor:
    chosen = getattr(output, "last_hidden_state", output)
    if not isinstance(chosen, Tensor):
        raise EvalError(
            f"{name} returned {type(chosen).__name__}; expected a tensor, a dictionary with x_norm_patchtokens, or an "
            "output with last_hidden_state: wrap it in a function of your own (--model callable:module:function; "
            "backbone.kind=callable of rasa.train)"
        )
    return chosen


def _from_maps(maps: Tensor, size: Size, name: str) -> Tensor:
    """(B, D, h, w) -> (B, h, w, D). Patches may overlap, but the grid has the shape of the images, up to rounding."""
    rows, columns = maps.shape[2:]
    if abs(rows * size[1] - columns * size[0]) > sum(size):
        raise EvalError(
            f"{name} returned maps of shape {tuple(maps.shape)}, {rows} x {columns} patches, for images of "
            f"{_words(size)}: another shape. Expected (B, D, h, w), the width of the features second"
        )
    return maps.permute(0, 2, 3, 1)


def _grid(tokens: Tensor, size: Size, name: str, prefix: int | None, patch_size: int | None) -> tuple[Tensor, int]:
    """(B, T, D) -> (B, h, w, D) and how many tokens come before the patches."""
    if tokens.ndim != 3:
        raise EvalError(
            f"{name} returned a tensor of shape {tuple(tokens.shape)} for images of {_words(size)}; expected one token "
            "per patch, (B, T, D) or (B, D, h, w), not pooled ones"
        )
    count = tokens.shape[1]
    found = _known_grid(count, size, prefix, patch_size) if patch_size else _square_grid(count, size, prefix)
    if found is None:
        raise EvalError(_no_grid(count, size, name, prefix, patch_size))
    before, shape = found
    _check_divides(shape, size, name, patch_size)
    return tokens[:, before:].unflatten(1, shape), before


def _known_grid(count: int, size: Size, prefix: int | None, patch_size: int) -> tuple[int, Size] | None:
    """Tokens before the patches, and the grid of whole patches of that size, where it fits."""
    shape = size[0] // patch_size, size[1] // patch_size
    before = count - shape[0] * shape[1]
    plausible = (0, prefix) if prefix is not None else range(MOST_PREFIX_TOKENS + 1)  # 0: it returns patches alone
    return (before, shape) if before < count and before in plausible else None


def _square_grid(count: int, size: Size, prefix: int | None) -> tuple[int, Size] | None:
    """The same for square images, of a network that doesn't tell its patch size."""
    if size[0] != size[1]:
        return None
    before = _guess_prefix(count, size[0]) if prefix is None else prefix
    if not _is_square(count - before):
        before = 0  # it has a class token, but returns patches alone
    root = isqrt(max(count - before, 0))
    return (before, (root, root)) if _is_square(count - before) else None


def _no_grid(count: int, size: Size, name: str, prefix: int | None, patch_size: int | None) -> str:
    behind = f", {max(count - prefix, 0)} of them behind class token and registers," if prefix else ""
    if size[0] == size[1]:
        why = "which form no square grid: one token per patch is needed. Is it pooled, or does it drop or merge tokens?"
    elif patch_size:
        why = f"which form no grid of patches of {patch_size} pixels. Does it drop or merge tokens?"
    else:
        why = "which aren't square: give the network an attribute patch_size, or let it return maps (B, D, h, w)"
    return f"{name} returned {count} tokens for images of {_words(size)}{behind} {why}"


def _check_divides(grid: Size, size: Size, name: str, patch_size: int | None) -> None:
    nearest = grid[0] * (patch_size or size[0] // grid[0]), grid[1] * (patch_size or size[1] // grid[1])
    if nearest != size:
        raise EvalError(
            f"{name} gives {grid[0]} x {grid[1]} patches for images of {_words(size)}, which don't divide them: take "
            f"images of {_words(nearest)}, or return overlapping patches as maps (B, D, h, w)"
        )


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


def _words(size: Size) -> str:
    return f"{size[0]} x {size[1]} pixels"
