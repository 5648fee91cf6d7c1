"""The backbone against names, shapes and outputs of the published one (reference values in FRANCA_PARITY)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.models import BACKBONES, VisionTransformer

TOLERANCE = 2e-5
FFN_NAMES = {"swiglufused": "swiglu", "mlp": "mlp"}


@pytest.fixture(scope="module")
def arrays(parity_dir: Path) -> dict[str, Tensor]:
    with np.load(parity_dir / "backbone.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def cases(parity_dir: Path) -> dict[str, Any]:
    return json.loads((parity_dir / "backbone_cases.json").read_text())


def load(
    arrays: Mapping[str, Tensor], cases: Mapping[str, Any], ffn: str, registers: int, **more: Any
) -> VisionTransformer:
    model = VisionTransformer(
        img_size=cases["native_img_size"],
        patch_size=cases["patch_size"],
        embed_dim=cases["embed_dim"],
        depth=cases["depth"],
        num_heads=cases["num_heads"],
        mlp_ratio=cases["mlp_ratio"],
        ffn=FFN_NAMES[ffn],
        num_register_tokens=registers,
        **more,
    )
    prefix = f"weights/{ffn}/"
    weights = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    if not registers:
        del weights["register_tokens"]
    model.load_state_dict(weights)
    return model.eval()


def below(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays under a folder, by the rest of their name."""
    found = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    assert found, f"no reference value under {prefix}"
    return found


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0, msg=lambda message: f"{name}: {message}")


def test_names_and_shapes_are_the_published_ones(parity_dir: Path) -> None:
    published = json.loads((parity_dir / "keys.json").read_text())["backbones"]
    for name, expected in published.items():
        arch, *settings = name.split("/")
        options = dict(setting.split("=") for setting in settings)
        with torch.device("meta"):
            model = BACKBONES[arch](
                img_size=int(options["img_size"]),
                num_register_tokens=int(options.get("registers", 0)),
                ffn=FFN_NAMES[options.get("ffn", "swiglufused")],
            )
        # With chunks a block is called blocks.<chunk>.<number>; the number does not restart.
        shapes = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): shape for key, shape in expected["keys"].items()}
        assert {key: list(value.shape) for key, value in model.state_dict().items()} == shapes, name
        assert sum(parameter.numel() for parameter in model.parameters()) == expected["n_parameters"], name
        assert (model.embed_dim, model.num_heads) == (expected["embed_dim"], expected["num_heads"]), name


@torch.no_grad()
def test_every_output(arrays: dict[str, Tensor], cases: dict[str, Any]) -> None:
    for case in cases["cases"]:
        model = load(
            arrays,
            cases,
            case["ffn"],
            case["registers"],
            interpolate_offset=case["interpolate_offset"],
            interpolate_antialias=case["antialias"],
        )
        size = f"{case['h']}x{case['w']}"
        masks = arrays[f"mask/{size}"] if case["masked"] else None
        features = model.forward_features(arrays[f"image/{size}"], masks)
        for name, expected in below(arrays, f"out/{case['tag']}/").items():
            assert_close(features[name], expected, f"{case['tag']} {name}")


@torch.no_grad()
def test_intermediate_layers(arrays: dict[str, Tensor], cases: dict[str, Any]) -> None:
    folders = {name.rsplit("/", 2)[0] for name in below(arrays, "inter/")}
    for folder in folders:
        ffn, registers, size = folder.split("/")
        model = load(arrays, cases, ffn, int(registers.removeprefix("reg")))
        layers = model.get_intermediate_layers(arrays[f"image/{size}"], n=2, reshape=True, return_class_token=True)
        assert len(layers) == len([name for name in arrays if re.fullmatch(f"inter/{folder}/.+/patch", name)])
        for number, (patches, class_token) in enumerate(layers):
            assert_close(patches, arrays[f"inter/{folder}/{number}/patch"], folder)
            assert_close(class_token, arrays[f"inter/{folder}/{number}/cls"], folder)


@torch.no_grad()
def test_intermediate_layers_by_list(arrays: dict[str, Tensor], cases: dict[str, Any]) -> None:
    model = load(arrays, cases, "swiglufused", arrays["weights/swiglufused/register_tokens"].shape[1])
    for name, expected in below(arrays, "inter_list_").items():
        blocks, norm, size, number = name.split("/")
        chosen = [int(block) for block in blocks.split("_")]
        layers = model.get_intermediate_layers(arrays[f"image/{size}"], n=chosen, norm=norm == "norm1")
        assert len(layers) == len(chosen)
        assert_close(layers[int(number)], expected, name)


@torch.no_grad()
def test_position_embeddings(arrays: dict[str, Tensor], cases: dict[str, Any]) -> None:
    for name, expected in below(arrays, "pos/").items():
        size, offset, antialias = re.fullmatch(r"(.+)/offset(.+)_aa(\d)", name).groups()
        more = {"interpolate_offset": float(offset), "interpolate_antialias": antialias == "1"}
        model = load(arrays, cases, "swiglufused", 0, **more)
        grid = tuple(int(side) // cases["patch_size"] for side in size.split("x"))
        assert_close(model.positions(grid), expected, name)
