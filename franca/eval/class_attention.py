"""Where a network's class token looks: its row of the last block's attention weights, recomputed from query and key.

Legend: B images of H x W pixels, T tokens, D width, h x w patches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from franca.eval.errors import EvalError
from franca.eval.networks import Network, features_of, library_of, refused_sizes, size_of
from franca.eval.tokens import has_class_token, patch_size_of, prefix_tokens, read_tokens

# Attention without anything that changes its weights between query, key and softmax.
PLAIN = {
    "franca.models.attention.Attention",
    "dinov2.layers.attention.Attention",
    "timm.layers.attention.Attention",
    "timm.models.vision_transformer.Attention",  # the same in earlier versions
}
PLAIN_OF_TRANSFORMERS = ("dinov2", "dinov2_with_registers", "vit", "deit")  # model types


def class_token_attention(model: Network, images: Tensor, name: str = "the network") -> Tensor:
    """Attention weights of the class token for the patches, (B, heads, h, w) fp32.

    They are softmax(q . k / sqrt(d)) over all tokens, so that those of the patches sum to what the class token leaves
    for them. Only the class token's row is computed: memory grows with T, not with T squared.

    Raises:
        EvalError: not a ViT of Franca, DINOv2, timm or transformers with plain attention and a class token.
    """
    attention = _last_attention(model)
    if attention is None or not has_class_token(model):
        raise EvalError(
            f"{name} has no attention of a class token that can be read: it takes a ViT of Franca, DINOv2, timm or "
            "transformers with a class token, without rotary positions"
        )
    with refused_sizes(images, name):
        query, key = _query_and_key(model, attention, images)
    with torch.autocast(images.device.type, enabled=False):
        logits = query[:, :, :1] @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (B, heads, 1, T)
        weights = logits[:, :, 0].softmax(dim=-1).transpose(1, 2)
    read = read_tokens(weights, size_of(images), name, prefix_tokens(model), patch_size_of(model))
    return read.patches.permute(0, 3, 1, 2)


def _query_and_key(model: Network, attention: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the last block's attention compares, each (B, heads, T, D / heads) fp32."""
    layers = [attention.qkv] if hasattr(attention, "qkv") else [attention.q_proj, attention.k_proj]
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in layers]
    try:
        features_of(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    found = [output.reshape(len(images), -1, output.shape[-1]) for output in seen]  # Franca's are flat, (B * T, 3 D)
    pair = found[0].tensor_split(3, dim=-1)[:2] if len(found) == 1 else found
    query, key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in pair)
    normed = getattr(attention, "q_norm", nn.Identity())(query), getattr(attention, "k_norm", nn.Identity())(key)
    return normed[0].float(), normed[1].float()


def _last_attention(model: Any) -> Any:
    """The attention of the last block, where it is plain; else None."""
    if library_of(model) == "transformers":
        layers = getattr(model, "layers", None) or getattr(getattr(model, "encoder", None), "layer", None)
        plain = model.config.model_type in PLAIN_OF_TRANSFORMERS
        attention = getattr(layers[-1], "attention", None) if plain and layers else None
        return attention if hasattr(attention, "q_proj") and hasattr(attention, "k_proj") else None
    blocks = getattr(model, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.ModuleList | nn.Sequential) else None
    classes = {f"{made.__module__}.{made.__name__}" for made in type(attention).__mro__}
    return attention if classes & PLAIN else None
