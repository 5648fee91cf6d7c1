"""A head as one matrix, and networks that have it within: the same features, one linear map, nothing else changed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from franca.models import RASAHead
from rasa import RasaError, fold, rasa_matrix
from rasa.backbones import Backbone

EXACT = {"rtol": 0, "atol": 5e-6}
FOLDED = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference(parity_dir: Path) -> dict[str, Tensor]:
    with np.load(parity_dir / "rasa.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def published(reference: dict[str, Tensor]) -> RASAHead:
    """A head trained in the original's way: planes one after the other, not orthogonal."""
    prefix = "head/weights/"
    state = {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}
    head = RASAHead(state["pos_pred.weight"].shape[1], sum(name.startswith("pre_pos_layers") for name in state))
    head.load_state_dict(state)
    return head


def without_last(head: RASAHead) -> RASAHead:
    """The earlier layers alone: a predictor that is zero spans no plane."""
    head = copy.deepcopy(head)
    nn.init.zeros_(head.pos_pred.weight)
    return head


def random_head(width: int = 32, earlier: int = 2) -> RASAHead:
    torch.manual_seed(1)
    return RASAHead(width, earlier).requires_grad_(False)


def test_matrix_equals_the_reference(published: RASAHead, reference: dict[str, Tensor]) -> None:
    wanted = reference["head/L_with_pos_pred_float64"]
    torch.testing.assert_close(rasa_matrix(published), wanted, rtol=0, atol=1e-12)
    earlier = without_last(published)
    torch.testing.assert_close(rasa_matrix(earlier), reference["head/L_pre_layers_float64"], rtol=0, atol=1e-12)


def test_matrix_does_what_the_head_does(published: RASAHead, reference: dict[str, Tensor]) -> None:
    features = reference["decompose2d/x"]
    by_matrix = features @ rasa_matrix(published).float()
    torch.testing.assert_close(published(features), by_matrix, **EXACT)
    torch.testing.assert_close(by_matrix, reference["head/out_with_pos_pred"], **EXACT)


def test_folding_behind_a_layer_norm_equals_the_reference(published: RASAHead, reference: dict[str, Tensor]) -> None:
    """The whole matrix goes behind the norm: its gain alone can't take it up."""
    gain, bias = reference["fold/ln_weight"], reference["fold/ln_bias"]
    normed = nn.functional.layer_norm(reference["fold/z"], gain.shape, gain, bias, eps=1e-6)
    matrix = rasa_matrix(without_last(published)).float()
    torch.testing.assert_close(normed @ matrix, reference["fold/out"], **EXACT)


KINDS = pytest.mark.parametrize(
    ("kind", "registers"),
    [("franca", 0), ("franca", 4), ("timm", 0), ("timm", 4), ("transformers", 0), ("transformers", 4)],
)


def all_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """(B, T, D), after the last norm."""
    output = model.forward_features(images) if hasattr(model, "forward_features") else model(images)
    if isinstance(output, Tensor):
        return output
    if "last_hidden_state" in output:
        return output["last_hidden_state"]
    names = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens")
    return torch.cat([output[name].flatten(1, -2) if name != names[0] else output[name][:, None] for name in names], 1)


@KINDS
@pytest.mark.parametrize("side", [56, 84])
def test_a_folded_network_gives_debiased_patches_and_its_other_tokens(
    kind: str, registers: int, side: int, network: Callable[..., nn.Module]
) -> None:
    model, head = network(kind, registers), random_head()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model, head)
    images = torch.randn(2, 3, side, side)
    tokens, first = all_tokens(model, images), 1 + registers
    assert tokens.shape[1] == first + (side // 14) ** 2
    changed = all_tokens(folded, images)
    torch.testing.assert_close(changed[:, first:], head(tokens[:, first:]), **FOLDED)
    torch.testing.assert_close(changed[:, :first], tokens[:, :first], rtol=0, atol=0)
    assert (changed - tokens).abs().max() > 0.1
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert type(folded) is type(model)
    added = sum(p.numel() for p in folded.parameters()) - sum(p.numel() for p in model.parameters())
    assert added == head.input_dim**2  # one linear map, and nothing that has to be kept beside it


@KINDS
def test_the_folded_network_is_a_backbone_without_position(
    kind: str, registers: int, network: Callable[..., nn.Module]
) -> None:
    model, head = network(kind, registers), random_head()
    images = torch.randn(2, 3, 56, 56)
    grid = Backbone(model)(images)
    assert grid.shape == (2, 4, 4, 32)
    torch.testing.assert_close(Backbone(fold(model, head))(images), head(grid), **FOLDED)


def as_maps(images: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, 32, S / 14, S / 14): a fixed random projection of mean colours."""
    mix = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    return torch.einsum("bchw,cd->bdhw", nn.functional.avg_pool2d(images, 14), mix)


class OwnNetwork(nn.Module):
    """Its `norm` is not the last thing that happens to the patches, and it has no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(as_maps(images).flatten(2).transpose(1, 2)) ** 2


@pytest.mark.parametrize("model", [as_maps, OwnNetwork()], ids=["function", "module"])
def test_any_other_function_is_wrapped(model: Callable[..., Any]) -> None:
    head, images = random_head(), torch.randn(2, 3, 56, 56)
    grid = Backbone(model)(images)
    torch.testing.assert_close(fold(model, head)(images), head(grid), **FOLDED)


@pytest.mark.parametrize("kind", ["franca", "timm", "transformers", "own"])
def test_folding_twice_is_refused(kind: str, network: Callable[..., nn.Module]) -> None:
    folded = fold(as_maps if kind == "own" else network(kind), random_head())
    with pytest.raises(RasaError, match="folded into this model already: load the original"):
        fold(folded, random_head())


@pytest.mark.parametrize("kind", ["franca", "timm", "transformers", "own"])
def test_a_head_of_another_width_is_refused(kind: str, network: Callable[..., nn.Module]) -> None:
    model, images = as_maps if kind == "own" else network(kind), torch.randn(1, 3, 56, 56)
    with pytest.raises(RasaError, match="the head reads 31 features, the model has 32"):
        fold(model, random_head(31))(images)  # a function shows its width when it is called


@pytest.mark.parametrize("kind", ["franca", "timm", "transformers"])
def test_the_map_takes_on_the_type_of_the_network(kind: str, network: Callable[..., nn.Module]) -> None:
    model = copy.deepcopy(network(kind)).double()
    folded = fold(model, random_head())
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float64}
    assert Backbone(folded)(torch.randn(1, 3, 56, 56, dtype=torch.float64)).shape == (1, 4, 4, 32)


@pytest.mark.parametrize("arguments", [("runs/rasa/rasa.pth", RASAHead(8, 0)), (lambda images: images, "rasa.pth")])
def test_a_path_is_neither_a_network_nor_a_head(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="fold takes a network and a RASAHead, not "):
        fold(*arguments)
