"""Names of other layouts: every tensor arrives under ours, and the other library computes the same with it."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca.hub.names import (
    chunk_blocks,
    flatten_blocks,
    from_timm,
    from_transformers,
    is_timm,
    is_transformers,
    to_timm,
    to_transformers,
)
from franca.models import VisionTransformer

os.environ["HF_HUB_OFFLINE"] = "1"
every_network = pytest.mark.parametrize(("ffn", "registers"), [("swiglu", 0), ("swiglu", 4), ("mlp", 0), ("mlp", 4)])


def tiny(ffn: str = "swiglu", registers: int = 0, depth: int = 2) -> VisionTransformer:
    """Random in every tensor: none is zero, or equal to another."""
    model = VisionTransformer(56, 14, embed_dim=24, depth=depth, num_heads=2, ffn=ffn, num_register_tokens=registers)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(("depth", "chunks"), [(4, 4), (8, 4), (7, 2), (2, 4)])
def test_chunks_and_back(depth: int, chunks: int) -> None:
    state = tiny(depth=depth).state_dict()
    chunked = chunk_blocks(state, chunks)
    assert not chunked.keys() & {name for name in state if name.startswith("blocks.")}
    assert_same(flatten_blocks(chunked), state)
    assert_same(flatten_blocks(state), state)
    assert_same(chunk_blocks(chunked, chunks), chunked)


@pytest.mark.parametrize("arch", ["vit_small", "vit_base", "vit_large", "vit_giant2"])
def test_chunked_names_are_the_released_ones(parity_dir: Path, arch: str) -> None:
    backbones = json.loads((parity_dir / "keys.json").read_text())["backbones"]
    keys = {n: list(backbones[f"{arch}/block_chunks={n}/img_size=224"]["keys"]) for n in (0, 4)}
    flat = dict.fromkeys(keys[0], torch.zeros(1))
    assert list(chunk_blocks(flat)) == keys[4]
    assert list(flatten_blocks(chunk_blocks(flat))) == keys[0]


@every_network
def test_transformers_and_back(ffn: str, registers: int) -> None:
    state = tiny(ffn, registers).state_dict()
    theirs = to_transformers(state)
    assert is_transformers(theirs)
    assert not is_transformers(state)
    assert_same(from_transformers(theirs), state)
    assert_same(from_transformers({f"dinov2_with_registers.{name}": t for name, t in theirs.items()}), state)
    assert_same(from_transformers({f"dinov2.{name}": t for name, t in theirs.items()}), state)


@every_network
def test_transformers_computes_the_same(ffn: str, registers: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.torch").load_file
    options = {"num_register_tokens": registers} if registers else {}
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        use_swiglu_ffn=ffn == "swiglu", **options,
    )  # fmt: skip
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)

    ours = tiny(ffn, registers)
    for state in (theirs.state_dict(), load_file(tmp_path / "model.safetensors")):
        assert is_transformers(state)
        ours.load_state_dict(from_transformers(state), strict=True)
        images = torch.randn(2, 3, 56, 56)
        with torch.no_grad():
            features, expected = ours.forward_features(images), theirs(images).last_hidden_state
        torch.testing.assert_close(features["x_norm_clstoken"], expected[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(features["x_norm_patchtokens"], expected[:, 1 + registers :], rtol=0, atol=1e-5)


@every_network
def test_timm_and_back(ffn: str, registers: int) -> None:
    state = tiny(ffn, registers).state_dict()
    theirs = to_timm(state)
    assert is_timm(theirs)
    assert not is_timm(state)
    expected = {name: tensor for name, tensor in state.items() if name != "mask_token"}
    if registers:  # the same sum, held by the token alone
        expected["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        expected["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), state["pos_embed"][:, 1:]], dim=1)
    assert_same(from_timm(theirs), expected)
    assert_same(to_timm(from_timm(theirs)), theirs)


@every_network
def test_timm_computes_the_same(ffn: str, registers: int) -> None:
    timm_models = pytest.importorskip("timm.models.vision_transformer")
    layers = pytest.importorskip("timm.layers")
    swiglu = {"mlp_ratio": 128 / 24, "mlp_layer": layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    theirs = timm_models.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=24, depth=2, num_heads=2, num_classes=0, init_values=1.0,
        reg_tokens=registers, no_embed_class=registers > 0, **(swiglu if ffn == "swiglu" else {}),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    state = theirs.state_dict()
    assert is_timm(state)

    ours = tiny(ffn, registers)
    ours.load_state_dict(from_timm(state) | {"mask_token": torch.zeros(1, 24)}, strict=True)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        features, expected = ours.forward_features(images), theirs.forward_features(images)
    torch.testing.assert_close(features["x_norm_clstoken"], expected[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(features["x_norm_patchtokens"], expected[:, 1 + registers :], rtol=0, atol=1e-5)


def test_unknown_names_stay() -> None:
    strange = {"classifier.weight": torch.ones(1), "blocks.0.attn.q_norm.weight": torch.ones(2)}
    state = tiny().state_dict()
    assert strange.items() <= flatten_blocks(state | strange).items()
    assert strange.items() <= from_transformers(to_transformers(state) | strange).items()
    assert strange.items() <= from_timm(to_timm(state) | strange).items()


def test_a_part_without_its_others_stays() -> None:
    theirs = to_transformers(tiny().state_dict())
    del theirs["encoder.layer.0.attention.attention.key.weight"]
    read = from_transformers(theirs)
    assert "blocks.0.attn.qkv.weight" not in read
    assert "blocks.0.attention.attention.query.weight" in read
    assert "blocks.0.attn.qkv.bias" in read
