"""Networks: the Vision Transformer backbone and the heads that read it. They need torch alone."""

from franca.models.backbones import BACKBONES, vit_base, vit_giant2, vit_large, vit_small, vit_tiny
from franca.models.features import Features
from franca.models.matryoshka_head import MatryoshkaHead
from franca.models.rasa_head import RASAHead
from franca.models.vision_transformer import VisionTransformer

__all__ = [
    "BACKBONES",
    "Features",
    "MatryoshkaHead",
    "RASAHead",
    "VisionTransformer",
    "vit_base",
    "vit_giant2",
    "vit_large",
    "vit_small",
    "vit_tiny",
]
