"""The RASA head against the reference values, and what it does to features."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from franca.models import RASAHead
from franca.models.rasa_head import decompose, plane_basis

TOLERANCE = {"rtol": 0, "atol": 5e-6}


@pytest.fixture(scope="module")
def reference(parity_dir: Path) -> dict[str, Tensor]:
    with np.load(parity_dir / "rasa.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def head(reference: dict[str, Tensor]) -> RASAHead:
    prefix = "head/weights/"
    state = {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}
    layers = sum(name.startswith("pre_pos_layers.") for name in state)
    head = RASAHead(state["pos_pred.weight"].shape[1], layers)
    head.load_state_dict(state)
    return head


@pytest.mark.parametrize("planes", ["decompose2d", "decompose1d"])
def test_decomposition_equals_the_reference(planes: str, reference: dict[str, Tensor]) -> None:
    positional, rest = decompose(reference["decompose2d/x"], reference[f"{planes}/weight"])
    torch.testing.assert_close(positional, reference[f"{planes}/x_pos"], **TOLERANCE)
    torch.testing.assert_close(rest, reference[f"{planes}/x_no_pos"], **TOLERANCE)


def test_outputs_equal_the_reference(head: RASAHead, reference: dict[str, Tensor]) -> None:
    features = reference["decompose2d/x"]
    earlier = head(features, use_pos_pred=False)
    torch.testing.assert_close(earlier, reference["head/out_pre_layers_only"], **TOLERANCE)
    torch.testing.assert_close(head(features), reference["head/out_with_pos_pred"], **TOLERANCE)
    torch.testing.assert_close(head.predict_positions(earlier), reference["head/pos_prediction"], **TOLERANCE)
    positional, rest = head(features, return_pos_info=True)
    torch.testing.assert_close(positional, reference["head/last_x_pos"], **TOLERANCE)
    torch.testing.assert_close(rest, reference["head/out_with_pos_pred"], **TOLERANCE)


def test_a_head_without_earlier_layers_removes_its_own_plane_alone(reference: dict[str, Tensor]) -> None:
    head = RASAHead(reference["decompose2d/x"].shape[-1], 0)
    features = reference["decompose2d/x"]
    torch.testing.assert_close(head(features, use_pos_pred=False), features)
    torch.testing.assert_close(head(features), decompose(features, head.pos_pred.weight)[1])


def test_names_and_shapes_are_the_published_ones(parity_dir: Path) -> None:
    for tag, entry in json.loads((parity_dir / "keys.json").read_text())["rasa_head"].items():
        width, layers = map(int, re.findall(r"\d+", tag))
        state = RASAHead(width, layers).state_dict()
        assert {name: list(tensor.shape) for name, tensor in state.items()} == entry["keys"]


def test_bases_are_orthonormal_and_span_the_rows() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 7, dtype=torch.float64)
    basis = plane_basis(weight)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(weight @ basis.T @ basis, weight)


@pytest.mark.parametrize("second", [[0.0, 0.0, 0.0], [2.0, 4.0, 6.0]], ids=["zero", "parallel"])
def test_a_row_that_spans_nothing_removes_nothing(second: list[float]) -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], second])
    features = torch.randn(5, 3)
    torch.testing.assert_close(decompose(features, weight)[1], decompose(features, weight[:1])[1])


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 9\).*input_dim=8"):
        RASAHead(8, 1)(torch.zeros(1, 4, 9))


def test_backbone_adds_debiased_patches_beside_the_others(build_backbone) -> None:
    model = build_backbone()
    model.rasa_head = RASAHead(model.embed_dim, 2)
    images = torch.randn(2, 3, 28, 42)
    plain, debiased = model.forward_features(images), model.forward_features(images, use_rasa_head=True)
    assert "patch_token_rasa" not in plain
    torch.testing.assert_close(debiased["x_norm_patchtokens"], plain["x_norm_patchtokens"])
    torch.testing.assert_close(debiased["patch_token_rasa"], model.rasa_head(plain["x_norm_patchtokens"]))
    listed = model.forward_features([images, images[..., :28]], use_rasa_head=True)
    torch.testing.assert_close(listed[0]["patch_token_rasa"], debiased["patch_token_rasa"])
    assert listed[1]["patch_token_rasa"].shape == (2, 4, model.embed_dim)


def test_a_backbone_without_a_head_says_how_to_get_one(build_backbone) -> None:
    model = build_backbone()
    with pytest.raises(ValueError, match=r"no RASA head is attached.*python -m rasa\.train"):
        model.forward_features(torch.zeros(1, 3, 28, 28), use_rasa_head=True)
    model.patch_map = nn.Linear(model.embed_dim, model.embed_dim, bias=False)
    with pytest.raises(ValueError, match=r"folded into this model"):
        model.forward_features(torch.zeros(1, 3, 28, 28), use_rasa_head=True)


def test_a_patch_map_changes_the_last_patches_and_nothing_else(build_backbone) -> None:
    model = build_backbone()
    images = torch.randn(2, 3, 28, 42)
    plain = model.forward_features(images)
    earlier, last = model.get_intermediate_layers(images, n=2, return_class_token=True)
    (before_norm,) = model.get_intermediate_layers(images, norm=False)

    model.patch_map = nn.Linear(model.embed_dim, model.embed_dim, bias=False)
    mapped = model.forward_features(images)
    expected = plain["x_norm_patchtokens"] @ model.patch_map.weight.T
    torch.testing.assert_close(mapped["x_norm_patchtokens"], expected)
    for name in ("x_norm_clstoken", "x_prenorm"):
        torch.testing.assert_close(mapped[name], plain[name], rtol=0, atol=0)
    mapped_earlier, mapped_last = model.get_intermediate_layers(images, n=2, return_class_token=True)
    torch.testing.assert_close(mapped_earlier, earlier)
    torch.testing.assert_close(mapped_last, (expected, last[1]))
    torch.testing.assert_close(model.get_intermediate_layers(images, norm=False)[0], before_norm)
