"""The sizes of the backbone by name. Positions are stored for 518 pixels unless `img_size` says otherwise."""

from collections.abc import Callable
from typing import TypedDict, Unpack

from franca.models.vision_transformer import VisionTransformer


class BackboneOptions(TypedDict, total=False):
    """Keyword arguments of the builders below beside `img_size` and `patch_size`: those of `VisionTransformer`."""

    in_chans: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    ffn: str
    init_values: float
    num_register_tokens: int
    drop_path_rate: float
    interpolate_offset: float
    interpolate_antialias: bool


def _build(
    img_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, options: BackboneOptions
) -> VisionTransformer:
    size: BackboneOptions = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    size.update(options)
    return VisionTransformer(img_size, patch_size, **size)


def vit_tiny(img_size: int = 518, patch_size: int = 14, **options: Unpack[BackboneOptions]) -> VisionTransformer:
    """Width 192, 12 blocks, 3 heads: for tests and first runs."""
    return _build(img_size, patch_size, 192, 12, 3, options)


def vit_small(img_size: int = 518, patch_size: int = 14, **options: Unpack[BackboneOptions]) -> VisionTransformer:
    """Width 384, 12 blocks, 6 heads: 22 M parameters."""
    return _build(img_size, patch_size, 384, 12, 6, options)


def vit_base(img_size: int = 518, patch_size: int = 14, **options: Unpack[BackboneOptions]) -> VisionTransformer:
    """Width 768, 12 blocks, 12 heads: 87 M parameters."""
    return _build(img_size, patch_size, 768, 12, 12, options)


def vit_large(img_size: int = 518, patch_size: int = 14, **options: Unpack[BackboneOptions]) -> VisionTransformer:
    """Width 1024, 24 blocks, 16 heads: 305 M parameters."""
    return _build(img_size, patch_size, 1024, 24, 16, options)


def vit_giant2(img_size: int = 518, patch_size: int = 14, **options: Unpack[BackboneOptions]) -> VisionTransformer:
    """Width 1536, 40 blocks, 24 heads: 1.14 B parameters."""
    return _build(img_size, patch_size, 1536, 40, 24, options)


BACKBONES: dict[str, Callable[..., VisionTransformer]] = {
    builder.__name__: builder for builder in (vit_tiny, vit_small, vit_base, vit_large, vit_giant2)
}
