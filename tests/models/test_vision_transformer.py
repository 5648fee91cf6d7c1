"""Properties of the backbone that need no reference values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.models import VisionTransformer, vit_tiny

BackboneBuilder = Callable[..., VisionTransformer]
SIZES = [(56, 56), (28, 28), (42, 70)]


def crops(batch: int = 2, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch + i, channels, *size, generator=generator) for i, size in enumerate(SIZES)]


def some_masks(images: Tensor) -> Tensor:
    patches = (images.shape[-2] // 14) * (images.shape[-1] // 14)
    return torch.rand(len(images), patches, generator=torch.Generator().manual_seed(2)) < 0.4


@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_list_equals_separate_calls(build_backbone: BackboneBuilder, ffn: str, registers: int) -> None:
    model = build_backbone(ffn=ffn, num_register_tokens=registers)
    images = crops()
    masks = [some_masks(images[0]), None, some_masks(images[2])]
    for together, batch, mask in zip(model.forward_features(images, masks), images, masks, strict=True):
        alone = model.forward_features(batch, mask)
        assert together["masks"] is mask
        for name in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
            torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_forward_gives_class_tokens(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(), crops()
    for token, features in zip(model(images), model.forward_features(images), strict=True):
        torch.testing.assert_close(token, features["x_norm_clstoken"])
    torch.testing.assert_close(model(images[0]), model(images)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_linear_layers_see_all_sizes_as_one_sequence(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(num_register_tokens=1), crops()
    seen: dict[str, list[int]] = {}
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(len(args[0])))
    model(images)
    tokens = sum(len(batch) * (2 + batch.shape[2] // 14 * (batch.shape[3] // 14)) for batch in images)
    assert len(seen) == 4 * len(model.blocks)
    assert all(lengths == [tokens] for lengths in seen.values())


@torch.no_grad()
def test_a_size_without_images_changes_nothing(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(), crops()
    first, empty, last = model.forward_features([images[0], images[1][:0], images[2]])
    torch.testing.assert_close(first["x_prenorm"], model.forward_features(images[0])["x_prenorm"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last["x_prenorm"], model.forward_features(images[2])["x_prenorm"], atol=1e-5, rtol=1e-5)
    assert empty["x_norm_patchtokens"].shape == (0, 4, model.embed_dim)
    ((patches, token),) = model.get_intermediate_layers(images[2][:0], reshape=True, return_class_token=True)
    assert (patches.shape, token.shape) == ((0, model.embed_dim, 3, 5), (0, model.embed_dim))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("as_list", [True, False])
def test_training_gives_gradients(build_backbone: BackboneBuilder, batch: int, rate: float, as_list: bool) -> None:
    model = build_backbone(num_register_tokens=2, drop_path_rate=rate).train()
    images = [torch.randn(batch, 3, *size) for size in SIZES]
    masks = [some_masks(images[0]), None, None]
    features = model.forward_features(images, masks) if as_list else [model.forward_features(images[0], masks[0])]
    sum((batch["x_norm_clstoken"].square().sum() + batch["x_norm_patchtokens"].sum()) for batch in features).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
def test_masked_patches_are_not_seen(build_backbone: BackboneBuilder) -> None:
    model = build_backbone()
    images = crops()[0]
    masks = some_masks(images)
    hidden = masks.unflatten(1, (4, 4)).repeat_interleave(14, 1).repeat_interleave(14, 2)[:, None]
    seen = model(images, masks)
    torch.testing.assert_close(model(torch.where(hidden, 9.0, images), masks), seen)
    assert not torch.allclose(model(torch.where(hidden, images, 9.0), masks), seen, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 4, 7])
@torch.no_grad()
def test_any_number_of_channels(build_backbone: BackboneBuilder, channels: int) -> None:
    model = build_backbone(in_chans=channels)
    images = crops(channels=channels)[0]
    before = model(images)
    images[:, -1] += 1
    assert (model(images) - before).abs().amax(dim=1).min() > 1e-3
    with pytest.raises(ValueError, match=f"in_chans={channels}"):
        model(torch.zeros(1, channels + 1, 28, 28))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((100, 28), ["height 100", "width 28", "patches of 14", "height: 98 or 112", "width: 28"]),
        ((28, 15), ["height 28", "width 15", "height: 28", "width: 14 or 28"]),
        ((13, 0), ["height 13", "height: 14", "width: 14"]),
    ],
)
def test_size_that_the_patch_does_not_divide(
    build_backbone: BackboneBuilder, size: tuple[int, int], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="does not divide") as error:
        build_backbone()(torch.zeros(1, 3, *size))
    for word in words:
        assert word in str(error.value)


@torch.no_grad()
def test_intermediate_layers(build_backbone: BackboneBuilder) -> None:
    model = build_backbone(num_register_tokens=2)
    images = crops()[2]
    features = model.forward_features(images)
    ((patches, class_token),) = model.get_intermediate_layers(images, return_class_token=True)
    torch.testing.assert_close(patches, features["x_norm_patchtokens"])
    torch.testing.assert_close(class_token, features["x_norm_clstoken"])
    (raw,) = model.get_intermediate_layers(images, norm=False)
    torch.testing.assert_close(raw, features["x_prenorm"][:, 3:])
    (image,) = model.get_intermediate_layers(images, reshape=True)
    torch.testing.assert_close(image[:, :, 1, 2], patches[:, 1 * 5 + 2])
    by_number = model.get_intermediate_layers(images, n=[0, 2])
    torch.testing.assert_close(by_number, model.get_intermediate_layers(images, n=3)[::2])


@pytest.mark.parametrize("n", [0, 4, [3], [-1], []])
def test_missing_block_is_an_error(build_backbone: BackboneBuilder, n: int | list[int]) -> None:
    with pytest.raises(ValueError, match="this model has 3 blocks"):
        build_backbone().get_intermediate_layers(crops()[0], n=n)


@torch.no_grad()
def test_attention_maps_weigh_the_values(build_backbone: BackboneBuilder) -> None:
    model = build_backbone(num_register_tokens=2)
    images = crops()[2]
    maps = model.attention_maps(images)
    assert maps.shape == (len(images), model.num_heads, 18, 18)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))

    block = model.blocks[-1]
    inputs: list[Tensor] = []
    hook = block.norm1.register_forward_hook(lambda module, args, output: inputs.append(output))
    model(images)
    hook.remove()
    value = (
        block.attn.qkv(inputs[0])[:, 2 * model.embed_dim :].view(len(images), 18, model.num_heads, -1).transpose(1, 2)
    )
    mixed = (maps @ value).transpose(1, 2).flatten(2).flatten(0, 1)
    torch.testing.assert_close(block.attn.proj(mixed), block.attn(inputs[0], [(len(images), 18)]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_stays_close(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(), crops()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.forward_features(images)
    for batch, token in zip(features, exact, strict=True):
        assert batch["x_prenorm"].dtype == torch.float32  # the residual stream keeps its precision
        assert torch.cosine_similarity(batch["x_norm_clstoken"], token).min() > 0.999
    maps = model.to(torch.bfloat16).attention_maps(images[0].bfloat16())
    assert maps.dtype == torch.float32  # bf16 weights would not add up to 1
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    half = model([batch.bfloat16() for batch in images])
    assert torch.cosine_similarity(half[0].float(), exact[0]).min() > 0.99


def test_bfloat16_training_with_drop_path(build_backbone: BackboneBuilder) -> None:
    model = build_backbone(drop_path_rate=0.5).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(token.float().square().sum() for token in model(crops()))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@torch.no_grad()
def test_blocks_share_one_compiled_graph(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(), crops()
    expected = model(images)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    for block in model.blocks:
        block.compile(backend=count, fullgraph=True)
    torch.testing.assert_close(model(images), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "embed_dim=32 is not a multiple of num_heads=5"),
        ({"img_size": 60}, "img_size=60 is not a multiple of patch_size=14"),
        ({"ffn": "swish"}, r"ffn='swish' is unknown; choose from \['mlp', 'swiglu'\]"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 must lie in \[0, 1\)"),
        ({"interpolate_offset": -0.1}, r"interpolate_offset=-0.1 must lie in \[0, 1\)"),
        ({"interpolate_offset": 1.0}, r"interpolate_offset=1.0 must lie in \[0, 1\)"),
        ({"init_values": None}, "init_values=None"),
        ({"init_values": 0}, "init_values=0"),
        ({"depth": 0}, "depth=0"),
        ({"in_chans": -1}, "in_chans=-1"),
        ({"num_register_tokens": -2}, "num_register_tokens=-2"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
    ],
)
def test_bad_arguments(build_backbone: BackboneBuilder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(**options)


def test_bad_masks(build_backbone: BackboneBuilder) -> None:
    model, images = build_backbone(), crops()
    with pytest.raises(ValueError, match=r"masks of shape \(3, 4\) and torch.bool; these images need .*\(2, 16\)"):
        model(images[0], some_masks(images[1]))
    with pytest.raises(ValueError, match=r"and torch.float32; these images need .* torch.bool"):
        model(images[0], some_masks(images[0]).float())
    with pytest.raises(ValueError, match="3 batches of images take a list of as many masks"):
        model(images, [None])
    with pytest.raises(ValueError, match="takes one tensor of masks"):
        model(images[0], [None])
    with pytest.raises(ValueError, match="list of images is empty"):
        model([])


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
def test_initialisation_leaves_nothing_as_allocated(build_backbone: BackboneBuilder, ffn: str, registers: int) -> None:
    model = build_backbone(ffn=ffn, num_register_tokens=registers, init_values=1e-5)
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.constant_(tensor, float("nan"))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
    assert model.blocks[0].ls1.gamma.eq(1e-5).all()
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.blocks[0].attn.qkv.bias.any()
    assert not model.mask_token.any()
    assert model.cls_token.abs().max() < 1e-5


def test_config_rebuilds_the_same_network() -> None:
    model = vit_tiny(img_size=28, depth=1, ffn="mlp", num_register_tokens=1, drop_path_rate=0.1)
    twin = VisionTransformer(**model.config)
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    assert (model.grid, model.patch_size, model.in_chans, model.num_register_tokens) == (2, 14, 3, 1)
