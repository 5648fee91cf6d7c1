"""A small network, and what checkpoints hold beside one."""

from typing import Any

import torch
from torch import Tensor

from franca.models import VisionTransformer

State = dict[str, Tensor]
SMALL = {"img_size": 42, "embed_dim": 24, "depth": 4, "num_heads": 2}
IMAGES = torch.randn(1, 3, 56, 42, generator=torch.Generator().manual_seed(0))


def network(**options: Any) -> VisionTransformer:
    """A small network whose every parameter matters, with the class token and positions far from zero."""
    model = VisionTransformer(**(SMALL | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2, generator=generator)
    return model.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"last_layer.weight_g": torch.ones(5, 1), "last_layer.weight_v": torch.ones(5, 4)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
