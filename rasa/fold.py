"""A RASA head as one matrix, and networks that have it within (paper Sec. 2.3, Eq. 3 with the sign that removes)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from franca.eval.networks import library_of
from franca.eval.tokens import prefix_tokens
from franca.models import RASAHead, VisionTransformer
from franca.models.rasa_head import plane_basis
from rasa.errors import RasaError
from rasa.tokens import patch_features

LAST_NORMS = ("norm", "layernorm")  # of timm and DINOv2; of transformers
FOLDED_ALREADY = "a RASA head is folded into this model already: load the original and fold into that"


def rasa_matrix(head: RASAHead) -> Tensor:
    """L with head(x) == x @ L, (D, D) float64: the product over rounds of I - (u_r u_r^T + u_c u_c^T)."""
    product = torch.eye(head.input_dim, dtype=torch.float64)
    for weight in head.weights():
        basis = plane_basis(weight.detach().cpu().double())
        product = product - (product @ basis.T) @ basis
    return product


def fold(model: Callable[..., Any], head: RASAHead) -> nn.Module:
    """A copy of a network whose patch features hold no position; the original is left as it is.

    A Franca model gets one linear map of its patch tokens behind the last norm (`patch_map`). A network of timm,
    transformers or DINOv2's own code gets a last norm that applies it, so that its own methods return debiased
    features; those that apply that norm to earlier blocks map these too. Class and register tokens stay as they are.
    The norm's gain can't absorb the map, which is no diagonal matrix. Any other function images -> patch features is
    wrapped: what it returns is (B, h, w, D) and debiased.

    Raises:
        TypeError: something else than a network and a head.
        RasaError: the head has another width than the network, or RASA is folded in already.
    """
    if not isinstance(head, RASAHead) or not callable(model):
        raise TypeError(
            f"fold takes a network and a RASAHead, not {type(model).__name__} and {type(head).__name__}; "
            "rasa/README.md shows how to read a head from rasa.pth"
        )
    linear = nn.Linear(head.input_dim, head.input_dim, bias=False)
    with torch.no_grad():
        linear.weight.copy_(rasa_matrix(head).T)
    linear.requires_grad_(False)
    if isinstance(model, VisionTransformer):
        return _with_patch_map(model, linear)
    layers = [getattr(model, name, None) for name in LAST_NORMS]
    if isinstance(model, Debiased) or any(isinstance(layer, NormThenMap) for layer in layers):
        raise RasaError(FOLDED_ALREADY)
    prefix = prefix_tokens(model)
    norm = next((name for name in LAST_NORMS if isinstance(getattr(model, name, None), nn.LayerNorm)), None)
    if isinstance(model, nn.Module) and library_of(model) and norm is not None and prefix is not None:
        folded = copy.deepcopy(model)
        setattr(folded, norm, NormThenMap(getattr(folded, norm), linear, prefix))
        return folded
    return Debiased(model, linear)


class NormThenMap(nn.Module):
    """(B, T, D) -> (B, T, D): a layer norm of all tokens, then a linear map of the patches among them."""

    def __init__(self, norm: nn.LayerNorm, linear: nn.Linear, prefix: int) -> None:
        super().__init__()
        if norm.normalized_shape != (linear.in_features,):
            raise RasaError(f"the head reads {linear.in_features} features, the model has {norm.normalized_shape[0]}")
        self.norm, self.linear, self.prefix = norm, linear.to(norm.weight), prefix

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        return torch.cat([tokens[:, : self.prefix], self.linear(tokens[:, self.prefix :])], dim=1)


class Debiased(nn.Module):
    """Images (B, C, S, S) -> patch features (B, h, w, D) of any function, without position."""

    def __init__(self, model: Callable[..., Any], linear: nn.Linear) -> None:
        super().__init__()
        weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.model, self.linear = model, linear if weight is None else linear.to(weight)

    def forward(self, images: Tensor) -> Tensor:
        grid = patch_features(self.model, images, "the model")
        if grid.shape[-1] != self.linear.in_features:
            raise RasaError(f"the head reads {self.linear.in_features} features, the model has {grid.shape[-1]}")
        return self.linear(grid.to(self.linear.weight))


def _with_patch_map(model: VisionTransformer, linear: nn.Linear) -> VisionTransformer:
    if model.embed_dim != linear.in_features:
        raise RasaError(f"the head reads {linear.in_features} features, the model has {model.embed_dim}")
    if model.patch_map is not None:
        raise RasaError(FOLDED_ALREADY)
    folded = copy.deepcopy(model)
    folded.rasa_head, folded.patch_map = None, linear.to(model.norm.weight)
    return folded
