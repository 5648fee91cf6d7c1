"""Pixels and colours as features: values written out, and how evaluation calls them."""

import pytest
import torch
from torch import Tensor

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.backbones import load_backbone
from franca.eval.baselines import thumbnail
from franca.eval.errors import EvalError


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def cell(images: Tensor, row: int, column: int, side: int = 14) -> Tensor:
    return images[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]


def test_pixels_are_a_thumbnail_and_the_pixels_of_each_patch(images: Tensor) -> None:
    (tokens,) = load_backbone("pixels")(images)
    assert tokens.patches.shape == (2, 2, 3, 3 * 14 * 14)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens.patches[:, row, column], cell(images, row, column).flatten(1))
    assert tokens.cls is not None
    torch.testing.assert_close(tokens.cls, thumbnail(images))


def test_a_thumbnail_holds_mean_values() -> None:
    images = torch.rand(2, 3, 32, 24)
    small = thumbnail(images).view(2, 3, 8, 8)
    torch.testing.assert_close(small[:, :, 2, 5], images[:, :, 8:12, 15:18].mean(dim=(2, 3)))


def test_colour_is_the_mean_of_the_image_and_of_each_patch(images: Tensor) -> None:
    (tokens,) = load_backbone("colour")(images)
    assert tokens.patches.shape == (2, 2, 3, 3)
    torch.testing.assert_close(tokens.patches[:, 1, 2], cell(images, 1, 2).mean(dim=(2, 3)))
    assert tokens.cls is not None
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(dim=(1, 2)))
    torch.testing.assert_close(tokens.cls, images.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["pixels", "colour"])
def test_pixels_are_normalised_as_for_networks(name: str) -> None:
    backbone = load_backbone(name)
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (backbone.patch_size, backbone.channels, backbone.blocks, backbone.name) == (14, 3, 1, name)


def test_they_are_told_apart() -> None:
    assert load_backbone("pixels").hash == load_backbone("pixels").hash != load_backbone("colour").hash


def test_what_they_have_not_is_refused(images: Tensor) -> None:
    pixels = load_backbone("pixels")
    with pytest.raises(EvalError, match=r"^pixels takes no images of 28 x 40 pixels .*28 x 28 pixels would do"):
        pixels(images[..., :40])
    with pytest.raises(EvalError, match=r"^pixels: the last 4 blocks were asked for"):
        pixels(images, 4)
    with pytest.raises(EvalError, match=r"^pixels has no attention"):
        pixels.attention(images)
