"""Any ViT as one function: images (B, C, S, S) -> patch features (B, h, w, D) in fp32.

Legend: B images of C channels and S x S pixels, T tokens, h x w patches, D width.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.hub import DownloadError, describe, load_model
from franca.hub.load import ENTRY_POINTS
from rasa.errors import RasaError
from rasa.tokens import features_of, patch_grid, prefix_tokens


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
        if self.kind not in LOADERS:
            raise ValueError(f"backbone.kind={self.kind!r}: choose one of {', '.join(LOADERS)}")
        if not self.name:
            raise ValueError("backbone.name is empty: name the model, its file or its folder")
        if bool(self.repo) != (self.kind == "torch_hub"):
            raise ValueError(f"backbone.repo={self.repo!r} belongs to backbone.kind=torch_hub, which needs it")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"backbone.mean={self.mean}, backbone.std={self.std}: set both or neither")

    def load(self) -> "Backbone":
        """The network, in eval mode on the CPU. Raises whatever its library raises, and RasaError."""
        model, mean, std = LOADERS[self.kind](self)
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
        return Backbone(model, self.mean or mean, self.std or std, f"{self.kind}:{self.name}")


@dataclass
class Backbone:
    """A frozen network, or any function, that turns images into patch tokens.

    It may return (B, T, D) tokens with the patches last (class token and registers before them), (B, D, h, w) maps, a
    dictionary with `x_norm_patchtokens` (Franca, DINOv2), or an output with `last_hidden_state` (transformers).
    """

    model: Callable[..., Any]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    name: str = "backbone"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised images -> (B, h, w, D). Raises RasaError when the tokens form no square grid."""
        side = images.shape[-1]
        try:
            output = features_of(self.model, images)
        except (AssertionError, ValueError) as error:  # how timm, and how Franca and transformers refuse a size
            raise RasaError(
                f"{self.name} takes no images of {side} x {side} pixels ({error}): change data.size={side}"
            ) from error
        return patch_grid(output, side, self.name, prefix_tokens(self.model))

    def to(self, device: torch.device) -> None:
        """Move the network, where it is one."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)


def _franca(config: BackboneConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    if config.name in ENTRY_POINTS:
        try:
            return load_model(config.name, weights=config.weights), IMAGENET_MEAN, IMAGENET_STD
        except DownloadError as error:
            raise RasaError(f"{error}. A file that is there already is named as backbone.name=FILE") from None
    if not Path(config.name).exists():
        raise RasaError(
            f"backbone.name={config.name!r} is neither a checkpoint file nor one of {', '.join(ENTRY_POINTS)}"
        )
    about = describe(config.name, config.num_heads)
    model = load_model(checkpoint=config.name, num_heads=config.num_heads)
    return model, about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD)


def _timm(config: BackboneConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    timm = _library("timm")
    try:
        model = timm.create_model(config.name, pretrained=True, num_classes=0, dynamic_img_size=True)
    except (RuntimeError, TypeError, OSError) as error:  # no such model, no weights, no ViT that takes other sizes
        raise RasaError(
            f"timm can't make backbone.name={config.name!r}: {error}. A folder with its config.json and weights is "
            "named as backbone.name=local-dir:FOLDER"
        ) from None
    stated = model.pretrained_cfg
    return model, stated.get("mean", IMAGENET_MEAN), stated.get("std", IMAGENET_STD)


def _transformers(config: BackboneConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    transformers = _library("transformers")
    try:
        model = transformers.AutoModel.from_pretrained(config.name)
    except (OSError, ValueError) as error:
        raise RasaError(
            f"transformers can't load backbone.name={config.name!r}: {error}. A folder with its config.json and "
            "weights does as well"
        ) from None
    with contextlib.suppress(OSError, ValueError):  # no preprocessor_config.json
        stated = transformers.AutoImageProcessor.from_pretrained(config.name)
        return model, stated.image_mean, stated.image_std
    return model, IMAGENET_MEAN, IMAGENET_STD


def _torch_hub(config: BackboneConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    source = "local" if Path(config.repo).is_dir() else "github"
    try:
        return torch.hub.load(config.repo, config.name, source=source), IMAGENET_MEAN, IMAGENET_STD
    except RuntimeError as error:  # no such entry point, or a package that it needs
        raise RasaError(f"{config.repo!r} has no backbone.name={config.name!r} that loads: {error}") from error


def _callable(config: BackboneConfig) -> tuple[Callable[..., Any], Sequence[float], Sequence[float]]:
    module, _, function = config.name.partition(":")
    if not function:
        raise RasaError(f"backbone.name={config.name!r}: give module:function, such as my_model:build")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RasaError(
            f"backbone.name={config.name!r} is no module:function that can be imported from here ({error})"
        ) from error
    model = found() if _takes_nothing(found) else found
    return model, getattr(model, "mean", IMAGENET_MEAN), getattr(model, "std", IMAGENET_STD)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Whether it makes the network, rather than being it: it can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RasaError(f"backbone.kind={name} needs the package {name}: pip install {name}") from error


LOADERS: dict[str, Callable[[BackboneConfig], tuple[Callable[..., Any], Sequence[float], Sequence[float]]]] = {
    "franca": _franca,
    "timm": _timm,
    "transformers": _transformers,
    "torch_hub": _torch_hub,
    "callable": _callable,
}
