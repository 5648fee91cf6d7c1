"""Small networks of every library, made on the spot."""

from typing import Any

import torch
from torch import nn

from franca.models import VisionTransformer


def build_network(kind: str, registers: int = 0) -> nn.Module:
    """A small untrained network of 2 blocks and 2 heads for images of 56 pixels, patches of 14, width 32.

    kind: "franca", "timm", "transformers" (Dinov2Model, Dinov2WithRegistersModel) or "vit" (its ViTModel).
    """
    torch.manual_seed(0)
    if kind == "franca":
        model: Any = VisionTransformer(
            img_size=56, embed_dim=32, depth=2, num_heads=2, init_values=1.0, num_register_tokens=registers
        )
        nn.init.normal_(model.pos_embed)
    elif kind == "timm":
        import timm.models.vision_transformer as timm_vit

        model = timm_vit.VisionTransformer(
            img_size=56, patch_size=14, embed_dim=32, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True,
            reg_tokens=registers,
        )  # fmt: skip
    else:
        import transformers

        sizes = {
            "image_size": 56, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2
        }  # fmt: skip
        if kind == "vit":
            model = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64))
        elif registers:
            config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
            model = transformers.Dinov2WithRegistersModel(config)
        else:
            model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)  # no norm that does nothing
    return model.eval().requires_grad_(False)
