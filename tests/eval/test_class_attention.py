"""Attention of the class token equals softmax(q . k / sqrt(d)) written out, and what each library itself returns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.eval.class_attention import class_token_attention
from franca.eval.errors import EvalError
from tests.small_networks import build_network

SIZE = (42, 84)
GRID = (3, 6)
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-6}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def sharpened(kind: str, registers: int) -> Any:
    """Attention of fresh weights is flat; this one's looks at some patches rather than others."""
    model = build_network(kind, registers)
    for name, parameter in model.named_parameters():
        if "qkv" in name or "q_proj" in name or "k_proj" in name:
            nn.init.normal_(parameter, 0.0, 0.3)
    return model


def row(query: Tensor, key: Tensor) -> Tensor:
    """Of the class token, from (B, T, heads, d): (B, heads, T), token by token."""
    logits = torch.einsum("bhd,bthd->bht", query[:, 0], key) / query.shape[-1] ** 0.5
    return logits.exp() / logits.exp().sum(dim=-1, keepdim=True)


def by_hand(model: Any, tokens: Tensor) -> Tensor:
    """What the last block of a network with `qkv` makes of its input (B, T, D)."""
    block = model.blocks[-1]
    query, key, _ = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 2, 16)).unbind(2)
    return row(query, key)


@pytest.mark.parametrize("registers", [0, 4])
def test_franca(registers: int, images: Tensor) -> None:
    model = sharpened("franca", registers)
    found = class_token_attention(model, images)
    assert found.shape == (2, 2, *GRID)
    torch.testing.assert_close(found.flatten(2), model.attention_maps(images)[:, :, 0, 1 + registers :], **EXACT)
    tokens, sizes = model._embed([images], [None])
    tokens = model.blocks[0](tokens, sizes).view(2, -1, 32)
    torch.testing.assert_close(found.flatten(2), by_hand(model, tokens)[:, :, 1 + registers :], **EXACT)
    assert found.std() > 1e-3


@pytest.mark.parametrize("registers", [0, 4])
def test_timm(registers: int, images: Tensor) -> None:
    model = sharpened("timm", registers)
    tokens = model.blocks[0](model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images)))))
    wanted = by_hand(model, tokens)[:, :, 1 + registers :]
    torch.testing.assert_close(class_token_attention(model, images).flatten(2), wanted, **EXACT)


def test_timm_with_normed_queries_and_keys(images: Tensor) -> None:
    import timm.models.vision_transformer as timm_vit

    torch.manual_seed(0)
    model: Any = timm_vit.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=32, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True,
        qk_norm=True,
    ).eval()  # fmt: skip
    block = model.blocks[0]
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    query, key, _ = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 2, 16)).unbind(2)
    wanted = row(block.attn.q_norm(query), block.attn.k_norm(key))[:, :, 1:]
    torch.testing.assert_close(class_token_attention(model, images).flatten(2), wanted, **EXACT)


@pytest.mark.parametrize(("kind", "registers"), [("transformers", 0), ("transformers", 4), ("vit", 0)])
def test_transformers(kind: str, registers: int, images: Tensor) -> None:
    model = sharpened(kind, registers)
    found = class_token_attention(model, images)
    model.set_attn_implementation("eager")
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    wanted = model(images, output_attentions=True, **options).attentions[-1][:, :, 0, 1 + registers :]
    torch.testing.assert_close(found.flatten(2), wanted, **EXACT)
    assert found.shape == (2, 2, *GRID)


@pytest.mark.parametrize("registers", [0, 4])
def test_patches_get_what_the_other_tokens_leave(registers: int, images: Tensor) -> None:
    """The class token's own weight, and the registers', are the rest of 1."""
    model = sharpened("franca", registers)
    rest = model.attention_maps(images)[:, :, 0, : 1 + registers].sum(-1)
    torch.testing.assert_close(class_token_attention(model, images).sum((-1, -2)) + rest, torch.ones(2, 2))


def test_half_precision_changes_little_and_no_hook_stays(images: Tensor) -> None:
    model = sharpened("franca", 0)
    exact = class_token_attention(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = class_token_attention(model, images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=1e-3)
    assert not any(module._forward_hooks for module in model.modules())


def no_class_token() -> Any:
    import timm.models.vision_transformer as timm_vit

    return timm_vit.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=32, depth=1, num_heads=2, class_token=False, global_pool="avg"
    )


def biased_attention() -> Any:
    """Relative positions enter its weights behind query and key."""
    import transformers

    return transformers.BeitModel(
        transformers.BeitConfig(
            image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, use_relative_position_bias=True,
        )
    )  # fmt: skip


def rotary() -> Any:
    import timm

    return timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=1, embed_dim=48, num_heads=2)


@pytest.mark.parametrize(
    "make",
    [no_class_token, biased_attention, rotary, lambda: nn.AvgPool2d(14), lambda: torch.sin],
    ids=["no class token", "biased", "rotary", "no transformer", "function"],
)
def test_networks_whose_attention_can_not_be_told_are_refused(make: Any) -> None:
    with pytest.raises(EvalError, match=r"^mine has no attention of a class token that can be read"):
        class_token_attention(make(), torch.randn(1, 3, 56, 56), "mine")


def test_a_size_that_is_refused_is_named() -> None:
    with pytest.raises(EvalError, match="mine takes no images of 59 x 56 pixels"):
        class_token_attention(build_network("franca"), torch.randn(1, 3, 59, 56), "mine")
