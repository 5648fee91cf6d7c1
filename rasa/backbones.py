"""Any ViT as one function: images (B, C, S, S) -> patch features (B, h, w, D) in fp32.

Legend: B images of C channels and S x S pixels, h x w patches, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.errors import EvalError
from franca.eval.loaders import ModelName, load_network
from rasa.errors import RasaError
from rasa.tokens import patch_features

KINDS = ("franca", "timm", "transformers", "torch_hub", "callable")


@dataclass
class BackboneConfig:
    """The network whose patch features are debiased.

    kind: "franca" (name: an entry point such as franca_vitb14, or a checkpoint file of any layout franca.hub reads,
    official DINOv2 files among them), "timm" (name: a model of timm, or local-dir:FOLDER), "transformers" (name: a
    model id or folder), "torch_hub" (name: an entry point of `repo`, such as dinov2_vitb14 of
    facebookresearch/dinov2), "callable" (name: module:function, a function of images, or one without arguments that
    returns the network).
    """

    kind: str = "franca"
    name: str = "franca_vitb14"
    repo: str = ""  # torch_hub alone: owner/name, or a local clone
    weights: str | None = None  # franca entry points alone: which published weights
    num_heads: int | None = None  # checkpoint files alone: attention heads, where the file doesn't tell
    mean: list[float] | None = None  # of pixel values in [0, 1]; None: what the model states, else ImageNet's
    std: list[float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"backbone.kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if not self.name:
            raise ValueError("backbone.name is empty: name the model, its file or its folder")
        if bool(self.repo) != (self.kind == "torch_hub"):
            raise ValueError(f"backbone.repo={self.repo!r} belongs to backbone.kind=torch_hub, which needs it")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"backbone.mean={self.mean}, backbone.std={self.std}: set both or neither")

    def load(self) -> "Backbone":
        """The network, in eval mode on the CPU. Raises whatever its library raises, and RasaError."""
        asked = ModelName(
            self.kind,
            self.name,
            self.repo,
            self.weights,
            self.num_heads,
            said=f"backbone.name={self.name!r}",
            chosen=f"backbone.kind={self.kind}",
        )
        try:
            loaded = load_network(asked)
        except EvalError as error:
            raise RasaError(str(error)) from error
        return Backbone(loaded.model, self.mean or loaded.mean, self.std or loaded.std, f"{self.kind}:{self.name}")


@dataclass
class Backbone:
    """A frozen network, or any function, that turns images into patch tokens.

    What it may return is told by `franca.eval.tokens.read_tokens`.
    """

    model: Callable[..., Any]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    name: str = "backbone"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised images -> (B, h, w, D). Raises RasaError as `patch_features`."""
        return patch_features(self.model, images, self.name)

    def to(self, device: torch.device) -> None:
        """Move the network, where it is one."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
