"""Attention heads leave no trace in tensors: what tells them is believed, what is guessed is said."""

import json

import pytest
import torch

from franca.hub import CheckpointError, load, load_model
from franca.hub.heads import attention_heads, told_heads
from franca.hub.layouts import recognise
from franca.models import VisionTransformer
from tests.hub.networks import network


def state(width: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return VisionTransformer(img_size=28, embed_dim=width, depth=1, num_heads=1).state_dict()


def saved_by_timm(folder, width: int, **config) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in state(width).items()}, folder / "pytorch_model.bin")
    return str(folder)


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (128, 2), (768, 12), (1024, 16), (1536, 24), (2048, 32)])
def test_a_width_that_is_a_multiple_of_64_has_heads_of_64_channels(width, heads) -> None:
    assert recognise(state(width), "a test").config["num_heads"] == heads


@pytest.mark.parametrize("width", [192, 384, 768, 1024, 1536])
def test_nothing_is_said_of_widths_that_everybody_uses_so(width) -> None:
    assert attention_heads(width, None, "a test")[1] is None


def test_other_guesses_are_noted() -> None:
    assert any("width / 64" in note and "num_heads=" in note for note in recognise(state(512), "a test").notes)
    assert recognise(state(512), "a test", num_heads=8).notes == []


@pytest.mark.parametrize("name", ["vit_huge_patch14_224", "vit_so400m_patch14_siglip_224", "vit_gigantic_patch14_224"])
def test_known_networks_of_other_heads(name) -> None:
    """ViT-H has 1280 channels in 16 heads, and so have others whose width would mislead."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    heads, note = attention_heads(model.embed_dim, None, "a test")
    assert heads == model.blocks[0].attn.num_heads != model.embed_dim // 64
    assert f"num_heads={heads} is taken" in note


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "vit_base_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_giant_patch14_224"),
        *(
            "vit_base_patch16_gap_224",
            "vit_giantopt_patch16_siglip_256",
            "vit_huge_patch14_224",
            "deit3_base_patch16_224",
        ),
        *("test_vit", "test_vit3", "vit_medium_patch16_gap_240", "deit3_huge_patch14_224"),
    ],
)
def test_architectures_of_timm_tell_theirs(name) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    config = {"timm_config": {"architecture": name, "pretrained_cfg": {}}}
    assert told_heads(config, model.embed_dim) == model.blocks[0].attn.num_heads


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"architecture": "test_vit"}, 2),
        ({"architecture": "test_vit", "model_args": {"num_heads": 4}}, 4),
        ({"architecture": "test_vit", "model_args": None, "pretrained_cfg": None}, 2),
    ],
)
def test_a_folder_of_timm_needs_no_guess(tmp_path, config, heads, capsys) -> None:
    assert load_model(checkpoint=saved_by_timm(tmp_path, 64, **config)).num_heads == heads
    assert "attention heads" not in capsys.readouterr().err


def test_an_architecture_that_isnt_known_is_guessed_and_said(tmp_path, capsys) -> None:
    assert load_model(checkpoint=saved_by_timm(tmp_path, 64, architecture="somebodys_vit")).num_heads == 1
    assert "attention heads: num_heads=1 is taken" in capsys.readouterr().err


def test_other_widths_ask() -> None:
    with pytest.raises(CheckpointError, match=r"width 100 is no multiple of 64.*give num_heads="):
        recognise(state(100), "a test")


def test_load_model_says_its_notes_once(capsys) -> None:
    load._say.cache_clear()
    plain = {name: tensor for name, tensor in network(ffn="mlp").state_dict().items() if name != "mask_token"}
    for _ in range(2):
        load_model(checkpoint=plain, num_heads=2)
    assert capsys.readouterr().err.count("no mask token in the file: zeros") == 1
