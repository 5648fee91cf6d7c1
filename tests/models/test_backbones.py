"""The named sizes."""

import inspect

import pytest
import torch

from franca.models import BACKBONES, VisionTransformer, vit_base
from franca.models.backbones import BackboneOptions


def test_builders_take_what_the_network_takes() -> None:
    spelt_out = {"img_size", "patch_size"}
    assert set(BackboneOptions.__annotations__) | spelt_out == set(inspect.signature(VisionTransformer).parameters)


@pytest.mark.parametrize("name", BACKBONES)
def test_size_by_name_gives_way_to_keywords(name: str) -> None:
    with torch.device("meta"):
        plain, changed = BACKBONES[name](depth=1), BACKBONES[name](depth=1, img_size=28, ffn="mlp", num_heads=1)
    assert plain.config | {"img_size": 28, "ffn": "mlp", "num_heads": 1} == changed.config
    assert plain.config["img_size"] == 518
    assert plain.embed_dim // plain.num_heads == 64


def test_image_and_patch_size_are_the_first_arguments() -> None:
    with torch.device("meta"):
        model = vit_base(64, 16, depth=1)
    assert (model.grid, model.patch_size) == (4, 16)
