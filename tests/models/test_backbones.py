"""The named sizes."""

import inspect

import pytest
import torch

from franca.models import BACKBONES, VisionTransformer
from franca.models.backbones import BackboneOptions


def test_builders_take_what_the_network_takes() -> None:
    assert set(BackboneOptions.__annotations__) == set(inspect.signature(VisionTransformer).parameters)


@pytest.mark.parametrize("name", BACKBONES)
def test_size_by_name_gives_way_to_keywords(name: str) -> None:
    with torch.device("meta"):
        plain, changed = BACKBONES[name](depth=1), BACKBONES[name](depth=1, img_size=28, ffn="mlp", num_heads=1)
    assert plain.config | {"img_size": 28, "ffn": "mlp", "num_heads": 1} == changed.config
    assert plain.config["img_size"] == 518
    assert plain.embed_dim // plain.num_heads == 64
