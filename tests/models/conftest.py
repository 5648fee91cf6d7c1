"""Small networks whose every branch matters: LayerScale 1, mask token and registers away from zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from franca.models import VisionTransformer

BackboneBuilder = Callable[..., VisionTransformer]


@pytest.fixture
def build_backbone() -> BackboneBuilder:
    def build(**options: Any) -> VisionTransformer:
        torch.manual_seed(0)
        size = {"img_size": 56, "embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
        model = VisionTransformer(**{**size, **options})
        for parameter in (model.cls_token, model.mask_token, model.register_tokens):
            if parameter is not None:
                nn.init.normal_(parameter)
        return model.eval()

    return build
