"""Networks, files and other libraries' loaders that the tests of conversion share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.hub import save_teacher
from franca.models import MatryoshkaHead, RASAHead, VisionTransformer

SIZE = 56  # pixels, 4 x 4 patches
LAYOUTS = ("franca", "upstream", "safetensors", "transformers", "timm")
FOLDERS = ("transformers", "timm")
# ffn, registers, heads, width: heads of 32 and of 12 channels
NETWORKS = [("swiglu", 0, 2, 64), ("swiglu", 4, 2, 24), ("mlp", 0, 2, 24), ("mlp", 2, 1, 64)]
every_network = pytest.mark.parametrize(("ffn", "registers", "heads", "width"), NETWORKS)


def random_model(
    ffn: str = "swiglu", registers: int = 0, heads: int = 2, width: int = 24, **options: Any
) -> VisionTransformer:
    """Every parameter is random, the mask token and each LayerScale too."""
    sizes = {"img_size": SIZE, "embed_dim": width, "depth": 4, "num_heads": heads}
    model = VisionTransformer(**(sizes | options), ffn=ffn, num_register_tokens=registers)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def save(path: Path, model: VisionTransformer, **description: Any) -> Path:
    """A teacher file with both heads."""
    head = MatryoshkaHead(model.embed_dim, 8, nesting=(1 / 2, 1), hidden_dim=8, bottleneck_dim=4)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    for name in ("dino_head", "ibot_head"):
        state |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    described = {"arch": "custom", "backbone": model.config, "stage": "pretrain", "step": 7}
    save_teacher(path, state, described | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]} | description)
    return path


def output(folder: Path, to: str) -> Path:
    return folder / {"safetensors": "out.safetensors"}.get(to, "out" if to in FOLDERS else "out.pth")


def load_transformers(folder: Path) -> nn.Module:
    """Loaded as a user would, with nothing missing, unexpected or of another shape."""
    transformers = pytest.importorskip("transformers")
    model, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert {name: problems for name, problems in found.items() if problems} == {}
    return model.eval()


def load_timm(folder: Path) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 1 + R + N, D) after the last norm, from any of the three."""
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            found = model.forward_features(images)
            parts = (found["x_norm_clstoken"][:, None], found["x_norm_regtokens"], found["x_norm_patchtokens"])
            return torch.cat(parts, dim=1)
        if hasattr(model, "forward_features"):
            return model.forward_features(images)
        return model(images).last_hidden_state


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


def with_head(path: Path) -> VisionTransformer:
    """A teacher file with a RASA head of three planes."""
    model = random_model()
    model.rasa_head = RASAHead(24, 2)
    save(path, model)
    return model


def folded(path: Path) -> VisionTransformer:
    """A teacher file with RASA folded in."""
    model = random_model()
    model.patch_map = nn.Linear(24, 24, bias=False)
    save(path, model)
    return model.eval()
