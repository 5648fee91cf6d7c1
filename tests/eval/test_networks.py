"""Tokens of the last blocks equal what each library itself gives, for any image size that the patch divides."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.eval.errors import EvalError
from franca.eval.networks import blocks_of, channels_of, last_tokens
from franca.eval.tokens import Tokens
from franca.models import RASAHead
from rasa import fold
from tests.small_networks import build_network

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
SIZES = [(56, 56), (42, 84)]

Pairs = list[tuple[Tensor, Tensor]]  # of each block class token (B, D) and patches (B, N, D)


def of_franca(model: Any, images: Tensor) -> Pairs:
    return [(cls, patches) for patches, cls in model.get_intermediate_layers(images, 2, return_class_token=True)]


def of_timm(model: Any, images: Tensor) -> Pairs:
    """By hand, block by block."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    pairs = []
    for block in model.blocks:
        tokens = block(tokens)
        normed = model.norm(tokens)
        pairs.append((normed[:, 0], normed[:, model.num_prefix_tokens :]))
    torch.testing.assert_close(normed, model.forward_features(images), **EXACT)
    return pairs


def of_transformers(model: Any, images: Tensor) -> Pairs:
    options = {"interpolate_pos_encoding": True} if type(model).__name__ == "ViTModel" else {}
    output = model(images, output_hidden_states=True, **options)
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    states = [model.layernorm(output.hidden_states[1]), output.last_hidden_state]
    return [(state[:, 0], state[:, first:]) for state in states]


LIBRARIES: dict[str, Callable[[Any, Tensor], Pairs]] = {
    "franca": of_franca,
    "timm": of_timm,
    "transformers": of_transformers,
    "vit": of_transformers,
}
KINDS = [(kind, registers) for kind in LIBRARIES for registers in (0, 4) if (kind, registers) != ("vit", 4)]


def assert_same(found: list[Tokens], wanted: Pairs, size: tuple[int, int]) -> None:
    assert len(found) == len(wanted)
    for tokens, (cls, patches) in zip(found, wanted, strict=True):
        assert tokens.patches.shape[1:3] == (size[0] // 14, size[1] // 14)
        assert tokens.cls is not None
        torch.testing.assert_close(tokens.cls, cls, **EXACT)
        torch.testing.assert_close(tokens.patches.flatten(1, 2), patches, **EXACT)


@pytest.fixture(params=SIZES, ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    return torch.randn(2, 3, *request.param, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "registers"), KINDS)
def test_blocks_are_those_of_the_library(kind: str, registers: int, images: Tensor) -> None:
    model = build_network(kind, registers)
    wanted = LIBRARIES[kind](model, images)
    size = tuple(images.shape[-2:])
    assert_same(last_tokens(model, images, 2), wanted, size)
    assert_same(last_tokens(model, images), wanted[-1:], size)
    assert (wanted[0][1] - wanted[1][1]).abs().max() > 1e-2  # blocks differ


class Wrapped(nn.Module):
    """DINOv2's own code, as far as evaluation uses it: what a Franca network gives, by another class."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network("franca")
        self.blocks, self.cls_token, self.patch_size = self.inner.blocks, self.inner.cls_token, 14

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        return self.inner.forward_features(images)

    def get_intermediate_layers(
        self, x: Tensor, n: int = 1, reshape: bool = False, return_class_token: bool = False, norm: bool = True
    ) -> tuple[Any, ...]:
        return self.inner.get_intermediate_layers(x, n, reshape, return_class_token, norm)


def test_the_interface_of_dinov2(images: Tensor) -> None:
    model = Wrapped()
    assert_same(last_tokens(model, images, 2), of_franca(model.inner, images), tuple(images.shape[-2:]))
    assert blocks_of(model) == 2


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_folded_network_maps_the_patches_of_its_last_block_alone(images: Tensor, blocks: int) -> None:
    model: Any = build_network("franca")
    head = RASAHead(32, 2)
    plain, folded = last_tokens(model, images, blocks), last_tokens(fold(model, head), images, blocks)
    torch.testing.assert_close(folded[-1].patches, head(plain[-1].patches), rtol=0, atol=2e-4)
    assert (folded[-1].patches - plain[-1].patches).abs().max() > 0.1
    for before, after in zip(plain, folded, strict=True):
        torch.testing.assert_close(after.cls, before.cls)
    for before, after in zip(plain[:-1], folded[:-1], strict=True):
        torch.testing.assert_close(after.patches, before.patches)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_network_of_timm_without_a_class_token_has_none(registers: int, images: Tensor) -> None:
    import timm.models.vision_transformer as timm_vit

    model = timm_vit.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=32, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True,
        class_token=False, global_pool="avg", reg_tokens=registers,
    ).eval()  # fmt: skip
    for blocks in (1, 2):
        tokens = last_tokens(model, images, blocks)[-1]
        assert tokens.cls is None
        torch.testing.assert_close(tokens.patches.flatten(1, 2), model.forward_features(images)[:, registers:], **EXACT)


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet10t", 32), ("swin_tiny_patch4_window7_224", 32), ("convnext_atto", 32)]
)
def test_pyramids_of_timm_give_their_last_maps(name: str, stride: int) -> None:
    import timm

    from franca.eval.tokens import patch_size_of

    model = (
        timm.create_model(name, num_classes=0, depths=(1, 1, 1, 1)) if "resnet" not in name else timm.create_model(name)
    )
    model.eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = last_tokens(model, images)[-1]
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert tokens.cls is None
    assert patch_size_of(model) == stride
    assert tokens.patches.shape == (1, 7, 7, model.num_features)
    if "convnext" not in name:  # whose head has a norm
        torch.testing.assert_close(tokens.patches.mean(dim=(1, 2)), pooled, rtol=1e-4, atol=1e-5)


def test_half_precision_comes_back_as_fp32(images: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = last_tokens(build_network("franca"), images, 2)
    assert {tensor.dtype for tokens in found for tensor in (tokens.cls, tokens.patches) if tensor is not None} == {
        torch.float32
    }


@pytest.mark.parametrize(("kind", "registers"), KINDS)
def test_networks_say_how_many_blocks_and_channels_they_have(kind: str, registers: int) -> None:
    model = build_network(kind, registers)
    assert (blocks_of(model), channels_of(model)) == (2, 3)


def test_a_function_tells_one_block() -> None:
    def maps(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 14)

    images = torch.randn(2, 3, 56, 84)
    (tokens,) = last_tokens(maps, images)
    torch.testing.assert_close(tokens.patches, maps(images).permute(0, 2, 3, 1))
    assert (blocks_of(maps), channels_of(maps)) == (1, None)
    with pytest.raises(EvalError, match=r"^mine: the last 4 blocks were asked for, there are 1 to 1 .*a function"):
        last_tokens(maps, images, 4, "mine")


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("blocks", [0, 3])
def test_blocks_that_are_not_there(kind: str, blocks: int) -> None:
    with pytest.raises(EvalError, match=rf"^mine: the last {blocks} blocks were asked for, there are 1 to 2"):
        last_tokens(build_network(kind), torch.randn(1, 3, 56, 56), blocks, "mine")


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_size_that_patches_do_not_divide(kind: str, blocks: int) -> None:
    with pytest.raises(EvalError, match=r"^mine .*59"):
        last_tokens(build_network(kind), torch.randn(1, 3, 59, 56), blocks, "mine")
