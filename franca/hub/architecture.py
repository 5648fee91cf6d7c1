"""What a backbone's tensors say about its architecture. Names are ours (`franca.hub.names`), blocks flat.

Legend: D width, R registers, N patches, H hidden width of the feed-forward network.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from franca.hub.checkpoint import CheckpointError
from franca.hub.names import depth
from franca.models import BACKBONES
from franca.models.feed_forward import swiglu_hidden


def infer_config(state: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Arguments of `VisionTransformer` for these tensors, but for attention heads and how positions are resampled.

    Args:
        state: the backbone's tensors.
        origin: where they come from, for errors.

    Raises:
        CheckpointError: a tensor that the architecture is read from is missing or of a strange shape, or the positions
            are no square grid.
    """
    positions = _tensor(state, "pos_embed", 3, origin)
    patches = _tensor(state, "patch_embed.proj.weight", 4, origin)
    width, patch_size, count = patches.shape[0], patches.shape[-1], positions.shape[1] - 1
    side = math.isqrt(max(count, 0))
    if side**2 != count or side == 0:
        raise CheckpointError(
            f"{origin}: pos_embed {tuple(positions.shape)} holds a class token and {count} positions, which are no "
            "square grid; models for another shape can't be built"
        )
    ffn, ratio = _feed_forward(state, width, origin)
    registers = state.get("register_tokens")
    return {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "in_chans": patches.shape[1],
        "embed_dim": width,
        "depth": depth(state),
        "mlp_ratio": ratio,
        "ffn": ffn,
        "num_register_tokens": registers.shape[1] if registers is not None and registers.ndim == 3 else 0,
    }


def name_architecture(config: Mapping[str, Any]) -> str:
    """The name in BACKBONES of this width, depth and number of heads, or "custom"."""
    size = tuple(config.get(key) for key in ("embed_dim", "depth", "num_heads"))
    return next((name for name, known in backbone_sizes().items() if known == size), "custom")


@cache
def backbone_sizes() -> dict[str, tuple[int, int, int]]:
    """Name -> (width, blocks, heads)."""
    with torch.device("meta"):
        configs = {name: build().config for name, build in BACKBONES.items()}
    return {name: (config["embed_dim"], config["depth"], config["num_heads"]) for name, config in configs.items()}


def ratio_for(hidden: int, width: int) -> float:
    """A ratio for which int(width * ratio) is `hidden`: rounding must not take one away."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _tensor(state: Mapping[str, Tensor], name: str, ndim: int, origin: str) -> Tensor:
    if name not in state:
        more = "; positions of another kind (rotary, relative) can't be used" if name == "pos_embed" else ""
        raise CheckpointError(f"{origin} holds a backbone without {name}{more}")
    if state[name].ndim != ndim:
        raise CheckpointError(f"{origin}: {name} has shape {tuple(state[name].shape)}, expected {ndim} dimensions")
    return state[name]


def _feed_forward(state: Mapping[str, Tensor], width: int, origin: str) -> tuple[str, float]:
    """Its kind and an `mlp_ratio` that gives its hidden width."""
    block = min((name.split(".")[1] for name in state if name.startswith("blocks.")), default="0")
    if f"blocks.{block}.mlp.w12.weight" in state:
        hidden = state[f"blocks.{block}.mlp.w12.weight"].shape[0] // 2
        # w12 has two thirds of the width that mlp_ratio counts; 4 is what everybody takes, and gives a rounded width
        return "swiglu", 4.0 if swiglu_hidden(4 * width) == hidden else ratio_for(hidden * 3 // 2, width)
    hidden = _tensor(state, f"blocks.{block}.mlp.fc1.weight", 2, origin).shape[0]
    return "mlp", ratio_for(hidden, width)
