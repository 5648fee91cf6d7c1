"""How positions are resampled is no tensor: it follows from who wrote the file."""

import ast
import re

import pytest
import torch

from franca.hub import load_model
from franca.hub.layouts import RESAMPLING, build, recognise
from franca.hub.names import chunk_blocks, to_timm
from tests.hub.networks import network


@pytest.mark.parametrize(
    ("wrap", "registers", "expected"),
    [
        (lambda s: s, 0, ("dinov2", 0.1, False)),
        (lambda s: s, 4, ("dinov2", 0.0, True)),
        (lambda s: {"teacher": s}, 0, ("upstream", 0.1, False)),
        (lambda s: {"teacher": s}, 4, ("upstream", 0.1, False)),
        (chunk_blocks, 0, ("upstream", 0.1, False)),
    ],
)
def test_conventions(wrap, registers, expected) -> None:
    found = recognise(wrap(network(num_register_tokens=registers).state_dict()), "a test", num_heads=2)
    resampling = (found.config["interpolate_offset"], found.config["interpolate_antialias"])
    assert (found.layout, *resampling) == expected


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_transformers_gives_the_same_features_on_every_grid(registers, swiglu, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn=swiglu,
        **({"num_register_tokens": registers} if registers else {}),
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    model.save_pretrained(tmp_path)
    loaded = load_model(checkpoint=tmp_path)
    for size in ((56, 56), (84, 70), (28, 42)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            theirs = model(images).last_hidden_state
            ours = loaded.forward_features(images)
        torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, 1 + registers :], rtol=0, atol=2e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_gives_the_same_features_on_every_grid(registers) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        f"vit_base_patch14_{'reg4_' if registers else ''}dinov2",
        img_size=56,
        embed_dim=24,
        depth=2,
        num_heads=3,
        dynamic_img_size=True,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    loaded = load_model(checkpoint=model.state_dict(), num_heads=3)
    for size in ((56, 56), (84, 70), (28, 42)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            theirs = model.forward_features(images)
            ours = loaded.forward_features(images)
        torch.testing.assert_close(ours["x_norm_clstoken"], theirs[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(ours["x_norm_patchtokens"], theirs[:, 1 + registers :], rtol=0, atol=2e-5)


def test_files_of_timm_that_may_be_dinos_are_doubted(tmp_path) -> None:
    """DINO's first files have timm's names, no layer scale and no mask token, but another resampling."""
    plain = {n: t for n, t in network(ffn="mlp").state_dict().items() if "gamma" not in n and n != "mask_token"}
    found = recognise(plain, "a test", num_heads=2)
    assert found.layout == "timm"
    doubt = next(note for note in found.notes if "resample" in note)
    model = build(found)
    for name, value in re.findall(r"model\.(interpolate_\w+) = ([\w.]*\w)", doubt):
        assert hasattr(model, name)
        setattr(model, name, ast.literal_eval(value))
    assert (model.interpolate_offset, model.interpolate_antialias) == RESAMPLING["dinov2"]


@pytest.mark.parametrize("registers", [0, 4])
def test_files_that_only_timm_writes_are_not_doubted(registers) -> None:
    state = to_timm(network(ffn="mlp", num_register_tokens=registers).state_dict())
    for content in (state, {"state_dict": state, "timm_config": {"architecture": "vit_base_patch14_dinov2"}}):
        found = recognise(content, "a test", num_heads=2)
        assert found.layout == "timm"
        assert not any("resample" in note for note in found.notes)
