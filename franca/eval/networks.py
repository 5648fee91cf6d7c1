"""Any ViT as one function: images -> tokens after its last blocks, whichever library it comes from.

Legend: B images of C channels and H x W pixels, h x w patches, D width.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from franca.eval.errors import EvalError
from franca.eval.tokens import Tokens, has_class_token, patch_size_of, prefix_tokens, read_tokens
from franca.models import VisionTransformer

LIBRARIES = ("timm", "transformers", "dinov2", "dinov3")

Network = Callable[..., Any]
Layers = list[tuple[Tensor, Tensor | None]]  # of each block patches (B, D, h, w) and class token (B, D)


def last_tokens(model: Network, images: Tensor, blocks: int = 1, name: str = "the network") -> list[Tokens]:
    """Tokens after each of the last blocks and the last norm, the last block last.

    Networks of Franca, DINOv2, timm and transformers give those of several blocks, any other function those of one.
    A linear map behind the norm (RASA folded into a Franca network) is applied to its last block alone.

    Args:
        model: a network, or a function of images; what it may return is told by `read_tokens`.
        images: (B, C, H, W) normalised.
        blocks: how many.
        name: of the network, for errors.

    Raises:
        EvalError: the network takes no images of this size, has fewer blocks or can't tell them apart, or returns
            something else than one token per patch.
    """
    size = images.shape[-2], images.shape[-1]
    depth = blocks_of(model)
    if not 1 <= blocks <= depth:
        more = "" if depth > 1 else " (a function tells its last block alone)"
        raise EvalError(f"{name}: the last {blocks} blocks were asked for, there are 1 to {depth} to be had{more}")
    try:
        if blocks > 1:
            layers = _LAYERS[_interface(model)](model, images, blocks)
            return [_tokens(patches, cls, has_class_token(model)) for patches, cls in layers]
        output = features_of(model, images)
    except EvalError:
        raise
    except (AssertionError, ValueError) as error:  # how timm, and how Franca and transformers refuse a size
        raise EvalError(f"{name} takes no images of {size[0]} x {size[1]} pixels ({error})") from error
    if getattr(model, "output_fmt", "") == "NHWC":  # timm's Swin and its kin
        output = output.permute(0, 3, 1, 2)
    prefix = prefix_tokens(model)
    with_class = prefix is None or has_class_token(model)
    return [read_tokens(output, size, name, prefix, patch_size_of(model), with_class)]


def features_of(model: Network, images: Tensor) -> Any:
    """What a network offers as its features: `forward_features` where it has one (Franca, DINOv2, timm)."""
    forward = getattr(model, "forward_features", model)
    return forward(images, **_any_size(forward))


def blocks_of(model: Network) -> int:
    """How many of its last blocks `last_tokens` can tell: all of a ViT's, 1 of any other function."""
    if not _interface(model):
        return 1
    blocks = getattr(model, "blocks", None)
    count = len(blocks) if blocks is not None else model.config.num_hidden_layers  # type: ignore[attr-defined]
    return int(getattr(model, "n_blocks", count))


def settings_of(model: Network) -> dict[str, Any]:
    """What decides a network's features beside its tensors, as far as it tells, in plain types."""
    if isinstance(model, VisionTransformer):
        resampling = {name: getattr(model, name) for name in ("interpolate_offset", "interpolate_antialias")}
        return model.config | resampling
    if library_of(model) == "transformers":
        told = model.config.to_dict()  # type: ignore[attr-defined]
        return {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}
    modules = model.modules() if isinstance(model, nn.Module) else ()
    heads = [module.num_heads for module in modules if isinstance(getattr(module, "num_heads", None), int)]
    return {"class": f"{type(model).__module__}.{type(model).__qualname__}", "heads": heads}


def channels_of(model: Network) -> int | None:
    """Channels of the images that a network takes: those of its first convolution. None where there is none."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), None)


def library_of(model: Network) -> str:
    """Which of LIBRARIES a network's class is of, or made from; "" for any other.

    In theirs, `norm` or `layernorm` is the last that all tokens go through.
    """
    tops = [made.__module__.partition(".")[0] for made in type(model).__mro__]
    return next((library for library in LIBRARIES if library in tops), "")


def _interface(model: Network) -> str:
    """How a network tells several blocks; "" where it doesn't."""
    if "return_class_token" in _parameters(getattr(model, "get_intermediate_layers", None)):
        return "dinov2"
    if hasattr(model, "num_prefix_tokens") and "return_prefix_tokens" in _parameters(
        getattr(model, "forward_intermediates", None)
    ):
        return "timm"
    known = library_of(model) == "transformers" and has_class_token(model) and _last_norm(model) is not None
    return "transformers" if known else ""


def _last_norm(model: Any) -> Any:
    """Of a network of transformers: what its last hidden state went through."""
    return getattr(model, "layernorm", None) or getattr(model, "norm", None)


def _dinov2_layers(model: Any, images: Tensor, blocks: int) -> Layers:
    """Of Franca, and of DINOv2's and DINOv3's own code."""
    return list(model.get_intermediate_layers(images, n=blocks, reshape=True, return_class_token=True, norm=True))


def _timm_layers(model: Any, images: Tensor, blocks: int) -> Layers:
    options = {"return_prefix_tokens": True, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    found = model.forward_intermediates(images, indices=blocks, **options)
    if not model.num_prefix_tokens:
        return [(patches, None) for patches in found]
    return [(patches, prefix[:, 0]) for patches, prefix in found]


def _transformers_layers(model: Any, images: Tensor, blocks: int) -> Layers:
    """Hidden states through the last norm; the last block's are what the network returns."""
    output = model(images, output_hidden_states=True, **_any_size(model))
    norm = _last_norm(model)
    states = [norm(state) for state in output.hidden_states[-blocks:-1]] + [output.last_hidden_state]
    name, size = type(model).__name__, (images.shape[-2], images.shape[-1])
    read = [read_tokens(state, size, name, prefix_tokens(model), patch_size_of(model)) for state in states]
    return [(tokens.patches.permute(0, 3, 1, 2), tokens.cls) for tokens in read]


_LAYERS: dict[str, Callable[[Any, Tensor, int], Layers]] = {
    "dinov2": _dinov2_layers,
    "timm": _timm_layers,
    "transformers": _transformers_layers,
}


def _tokens(patches: Tensor, cls: Tensor | None, with_class: bool) -> Tokens:
    return Tokens(cls.float() if cls is not None and with_class else None, patches.permute(0, 2, 3, 1).float())


def _any_size(forward: Network) -> dict[str, bool]:
    """What a network of transformers needs to be told to take images of another size than it was made for."""
    called = getattr(forward, "forward", forward)
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _parameters(called) else {}


def _parameters(function: Network | None) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters) if function is not None else frozenset()
    except ValueError:  # of something written in C
        return frozenset()
