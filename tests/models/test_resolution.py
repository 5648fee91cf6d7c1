"""`set_resolution`: a model whose positions belong to another grid, with the features that it had there before."""

import pytest
import torch
from torch import Tensor, nn

from franca.models import RASAHead, VisionTransformer

FEATURES = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm")
every_resampling = pytest.mark.parametrize(
    ("offset", "antialias"), [(0.1, False), (0.1, True), (0.0, False), (0.0, True)]
)


def tiny(offset: float = 0.1, antialias: bool = False, img_size: int = 84) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size,
        embed_dim=24,
        depth=2,
        num_heads=2,
        init_values=1.0,
        num_register_tokens=2,
        interpolate_offset=offset,
        interpolate_antialias=antialias,
    )
    with torch.no_grad():
        model.pos_embed.normal_()
        model.cls_token.normal_()
    return model.eval()


def assert_same_features(model: VisionTransformer, images: Tensor, expected: VisionTransformer) -> None:
    with torch.no_grad():
        found, wanted = model.forward_features(images), expected.forward_features(images)
    for name in FEATURES:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6, msg=name)


@every_resampling
@pytest.mark.parametrize("img_size", [42, 126, 224])
def test_features_at_the_new_size_stay(offset: float, antialias: bool, img_size: int) -> None:
    before, after = tiny(offset, antialias), tiny(offset, antialias)
    after.set_resolution(img_size)
    assert after.pos_embed.shape == (1, 1 + (img_size // 14) ** 2, 24)
    assert after.grid == img_size // 14
    assert_same_features(after, torch.randn(2, 3, img_size, img_size), before)


def test_other_sizes_are_resampled_from_the_new_grid() -> None:
    model, resampled = tiny(), tiny()
    model.set_resolution(126)
    with torch.no_grad():
        shifted = model.forward_features(torch.zeros(1, 3, 98, 154))["x_norm_patchtokens"]
    assert shifted.shape == (1, 7 * 11, 24)
    assert torch.equal(model.positions((9, 9)), resampled.positions((9, 9)))
    assert not torch.equal(model.positions((7, 11)), resampled.positions((7, 11)))


def test_state_fits_a_model_built_for_that_size() -> None:
    model = tiny()
    model.set_resolution(126)
    built = VisionTransformer(**model.config)
    assert built.config["img_size"] == 126
    built.load_state_dict(model.state_dict(), strict=True)
    assert_same_features(built.eval(), torch.randn(1, 3, 126, 126), model)


def test_native_size_changes_nothing() -> None:
    model = tiny()
    before, config = model.pos_embed, dict(model.config)
    model.set_resolution(84)
    assert model.pos_embed is before
    assert model.config == config


def test_the_new_positions_are_a_parameter_like_the_old_ones() -> None:
    model = tiny().to(torch.bfloat16)
    model.pos_embed.requires_grad_(False)
    model.set_resolution(56)
    assert isinstance(model.pos_embed, nn.Parameter)
    assert (model.pos_embed.dtype, model.pos_embed.requires_grad) == (torch.bfloat16, False)

    trained = tiny()
    trained.set_resolution(56)
    trained(torch.randn(2, 3, 56, 56)).sum().backward()
    assert trained.pos_embed.is_leaf
    assert trained.pos_embed.grad is not None


def test_rasa_stays_attached() -> None:
    model = tiny()
    model.rasa_head = RASAHead(24, 1)
    model.set_resolution(56)
    found = model.forward_features(torch.randn(1, 3, 56, 56), use_rasa_head=True)["patch_token_rasa"]
    assert found.shape == (1, 16, 24)


@pytest.mark.parametrize("img_size", [100, 0, -14, 98.0])
def test_sizes_that_are_no_grid_are_refused(img_size: int) -> None:
    model = tiny()
    before = model.pos_embed
    with pytest.raises(ValueError, match=f"img_size={img_size}"):
        model.set_resolution(img_size)
    assert model.pos_embed is before
    assert model.config["img_size"] == 84
