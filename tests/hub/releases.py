"""Small networks and files in place of the published ones."""

from pathlib import Path

import torch

from franca.models import VisionTransformer

WIDTH = 64


def network(img_size: int = 42) -> VisionTransformer:
    torch.manual_seed(img_size)
    return VisionTransformer(img_size=img_size, embed_dim=WIDTH, depth=2, num_heads=1).eval()


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(model: VisionTransformer, expected: VisionTransformer) -> bool:
    found, wanted = model.state_dict(), expected.state_dict()
    shared = [name for name in wanted if not name.startswith("rasa_head.") or model.rasa_head is not None]
    return all(torch.equal(found[name], wanted[name]) for name in shared) and not model.training
