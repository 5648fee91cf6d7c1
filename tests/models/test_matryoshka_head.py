"""The Matryoshka head: published names and shapes, and what each level may see."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from franca.models import MatryoshkaHead

D = 32


def small_head(**options: Any) -> MatryoshkaHead:
    torch.manual_seed(0)
    head = MatryoshkaHead(**{"in_dim": D, "prototypes": 64, "hidden_dim": 24, "bottleneck_dim": 12, **options})
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def by_hand(head: MatryoshkaHead, features: Tensor, layers: int, normalize: bool) -> list[Tensor]:
    """The head written out level by level from its state dictionary."""
    state, scores = head.state_dict(), []
    for level, width in enumerate(head.widths):
        projection = f"matryoshka_projections.{level}"
        rows = features[:, :width] @ state[f"{projection}.weight"].T + state[f"{projection}.bias"]
        names = [f"mlps.{level}"] if layers == 1 else [f"mlps.{level}.{2 * layer}" for layer in range(layers)]
        for number, name in enumerate(names):
            rows = rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]
            last = number == layers - 1
            if layers > 1 and not (last and normalize):
                rows = F.gelu(rows)
        if normalize:
            rows = rows / rows.norm(dim=1, keepdim=True)
        directions = state[f"last_layers.{level}.weight_v"]
        directions = directions / directions.norm(dim=1, keepdim=True)
        scores.append(rows @ directions.T * state[f"last_layers.{level}.weight_g"][:, 0])
    return scores


def described_by(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Arguments of the head whose published names and shapes these are."""
    first = [shape for key, shape in shapes.items() if re.fullmatch(r"mlps\.0\.(\d+\.)?weight", key)]
    maps = [shape for key, shape in shapes.items() if re.fullmatch(r"matryoshka_projections\.\d+\.weight", key)]
    in_dim = maps[0][1]
    return {
        "in_dim": in_dim,
        "prototypes": [shape[0] for key, shape in shapes.items() if key.endswith("weight_g")],
        "nesting": [width / in_dim for width, _ in maps],
        "hidden_dim": first[0][0],
        "bottleneck_dim": first[-1][0],
        "layers": len(first),
    }


def test_names_and_shapes_are_the_published_ones_with_slice_maps(parity_dir: Path) -> None:
    published = json.loads((parity_dir / "keys.json").read_text())["mrl_head"]
    heads = {name: entry for name, entry in published.items() if "keys" in entry}
    assert heads
    for name, entry in heads.items():
        with torch.device("meta"):
            head = MatryoshkaHead(**described_by(entry["keys"]))
        shapes = {
            key: [shape[0], shape[0]] if re.fullmatch(r"matryoshka_projections\.\d+\.weight", key) else shape
            for key, shape in entry["keys"].items()
        }
        assert {key: list(value.shape) for key, value in head.state_dict().items()} == shapes, name


def test_slice_heads_have_the_names_and_shapes_of_the_reference_step(parity_dir: Path) -> None:
    config = json.loads((parity_dir / "step_slice.json").read_text())["config"]
    with np.load(parity_dir / "step_slice.npz") as file:
        for name in ("dino_head", "ibot_head"):
            expected, in_dim = config[name], config["embed_dim"]
            head = MatryoshkaHead(
                in_dim=in_dim,
                prototypes=expected["prototypes"],
                nesting=[width / in_dim for width in expected["nesting"]],
                hidden_dim=expected["hidden"],
                bottleneck_dim=expected["bottleneck"],
                layers=expected["nlayers"],
            )
            prefix = f"student_init/{name}."
            shapes = {key.removeprefix(prefix): file[key].shape for key in file.files if key.startswith(prefix)}
            assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == shapes


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("nesting", [(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), (1,), (1 / 4, 1 / 2)])
def test_equals_the_loop_by_hand(nesting: Sequence[float], layers: int, normalize: bool) -> None:
    head = small_head(nesting=nesting, layers=layers, normalize_bottleneck=normalize)
    features = torch.randn(7, D)
    expected = by_hand(head, features, layers, normalize)
    assert [scores.shape for scores in head(features)] == [(7, count) for count in head.prototypes]
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_are_the_products_of_their_factors(normalize: bool) -> None:
    head = small_head(normalize_bottleneck=normalize)
    features = torch.randn(7, D)
    for level, (factors, scores) in enumerate(zip(head.factors(features), head(features), strict=True)):
        assert torch.equal(scores, F.linear(factors.rows, factors.prototypes))
        gains = head.last_layers[level].weight_g.abs()
        torch.testing.assert_close(factors.prototypes.norm(dim=1, keepdim=True), gains)
        if normalize:
            torch.testing.assert_close(factors.rows.norm(dim=1), torch.ones(7))


def test_a_level_sees_its_slice_alone() -> None:
    head = small_head()
    features = torch.randn(7, D, requires_grad=True)
    for width, scores in zip(head.widths, head(features), strict=True):
        (gradient,) = torch.autograd.grad(scores.square().sum(), features, retain_graph=True)
        assert gradient[:, :width].abs().sum(0).min() > 0
        assert not gradient[:, width:].any()


def test_normalised_scores_are_cosines_times_gain() -> None:
    head = small_head()
    for last in head.last_layers:
        nn.init.constant_(last.weight_g, 2.0)
    scores = torch.cat(head(100 * torch.randn(50, D)), dim=1)
    assert scores.abs().max() <= 2.0 + 1e-5
    assert scores.abs().max() > 1.0


def test_length_of_prototypes_does_not_matter() -> None:
    head = small_head(normalize_bottleneck=False)
    features = torch.randn(7, D)
    before = head(features)
    with torch.no_grad():
        for last in head.last_layers:
            last.weight_v *= torch.rand_like(last.weight_g) + 0.5
    torch.testing.assert_close(head(features), before)


def test_prototypes_by_number_and_by_list() -> None:
    assert small_head(prototypes=64).prototypes == [4, 8, 16, 32, 64]
    assert small_head(prototypes=[7, 7, 9, 9, 50]).prototypes == [7, 7, 9, 9, 50]
    assert small_head(prototypes=64, nesting=(1,)).prototypes == [64]
    assert small_head(prototypes=40).prototypes == [2, 5, 10, 20, 40]  # rounded down, as the released heads
    assert small_head(prototypes=40, nesting=(1 / 4, 1 / 2)).prototypes == [20, 40]  # by the widest level, not by d


@pytest.mark.parametrize("width", [D - 1, 2 * D])
def test_features_of_another_width_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"shape \(3, {width}\); this head reads \(N, in_dim={D}\)"):
        small_head()(torch.randn(3, width))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.2)])
def test_weights_of_another_precision(dtype: torch.dtype, tolerance: float, normalize: bool) -> None:
    head, features = small_head(normalize_bottleneck=normalize), torch.randn(7, D)
    expected = [scores / scores.std() for scores in head(features)]
    for scores, reference in zip(head.to(dtype)(features.to(dtype)), expected, strict=True):
        assert scores.dtype == dtype
        torch.testing.assert_close((scores / scores.std()).float(), reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesting": (1 / 3, 1)}, "10.6667"),
        ({"nesting": (1 / 64, 1)}, "0.5"),
        ({"nesting": (1, 2)}, "nesting holds 2"),
        ({"nesting": (0, 1)}, "nesting holds 0"),
        ({"nesting": ()}, "nesting is empty"),
        ({"nesting": (1 / 2, 1 / 2, 1)}, "without duplicates"),
        ({"nesting": (1, 1 / 2)}, "must grow"),
        ({"prototypes": 15}, r"\[0, 1, 3, 7, 15\]: every level needs at least one"),
        ({"prototypes": [4, 8]}, "2 counts for 5 levels"),
        ({"prototypes": [4, 8, 0, 8, 8]}, "at least one"),
        ({"prototypes": 0}, "at least one"),
        ({"layers": 0}, "layers=0"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"bottleneck_dim": -3}, "bottleneck_dim=-3"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_head(**options)


@pytest.mark.parametrize("layers", [1, 3])
def test_initialisation_leaves_nothing_as_allocated(layers: int) -> None:
    head = small_head(layers=layers, hidden_dim=256)
    for tensor in (*head.parameters(), *head.buffers()):
        nn.init.constant_(tensor, float("nan"))
    head.init_weights()
    for name, tensor in head.state_dict().items():
        assert tensor.isfinite().all(), name
        if name.endswith("bias"):
            assert not tensor.any(), name
    assert all(last.weight_g.eq(1).all() for last in head.last_layers)
    assert head.matryoshka_projections[-1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    directions = head.last_layers[-1].weight_v  # to all sides
    assert directions.mean().abs() < 0.2 * directions.std()


def test_config_rebuilds_the_same_head() -> None:
    head = small_head(nesting=(1 / 4, 1), prototypes=[3, 5], layers=2, normalize_bottleneck=False)
    twin = MatryoshkaHead(**json.loads(json.dumps(head.config)))
    assert twin.config == head.config
    twin.load_state_dict(head.state_dict())


def test_bfloat16_and_zero_rows_stay_finite() -> None:
    head = small_head()
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)  # so that a row of zeros reaches the normalisation as zeros
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(torch.cat([torch.zeros(1, D), torch.randn(3, D)]))
    sum(level.float().square().sum() for level in scores).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
