"""Any ViT as one function: images -> tokens after its last blocks, whichever library it comes from.

Legend: B images of C channels and H x W pixels, h x w patches, D width.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from franca.eval.errors import EvalError
from franca.eval.tokens import Size, Tokens, has_class_token, patch_size_of, prefix_tokens, read_tokens
from franca.models import VisionTransformer

LIBRARIES = ("timm", "transformers", "dinov2", "dinov3")

Network = Callable[..., Any]


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
    depth = blocks_of(model)
    if not 1 <= blocks <= depth:
        more = "" if depth > 1 else " (a function tells its last block alone)"
        raise EvalError(f"{name}: the last {blocks} blocks were asked for, there are 1 to {depth} to be had{more}")
    with refused_sizes(images, name):
        outputs = _SEVERAL[_interface(model)](model, images, blocks) if blocks > 1 else [features_of(model, images)]
    if getattr(model, "output_fmt", "") == "NHWC":  # timm's Swin and its kin
        outputs = [output.permute(0, 3, 1, 2) for output in outputs]
    prefix = prefix_tokens(model)
    with_class = prefix is None or has_class_token(model)
    return [read_tokens(output, size_of(images), name, prefix, patch_size_of(model), with_class) for output in outputs]


@contextmanager
def refused_sizes(images: Tensor, name: str) -> Iterator[None]:
    """EvalError with the size of the images (B, C, H, W) for what a network says of a size that it doesn't take."""
    try:
        yield
    except EvalError:
        raise
    except (AssertionError, ValueError) as error:  # how timm, and how Franca and transformers refuse a size
        height, width = size_of(images)
        raise EvalError(f"{name} takes no images of {height} x {width} pixels ({error})") from error


def size_of(images: Tensor) -> Size:
    """Height and width of images (B, C, H, W)."""
    return images.shape[-2], images.shape[-1]


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


def _dinov2_blocks(model: Any, images: Tensor, blocks: int) -> list[Any]:
    """Of Franca, and of DINOv2's and DINOv3's own code."""
    found = model.get_intermediate_layers(images, n=blocks, reshape=True, return_class_token=True, norm=True)
    return [{"x_norm_clstoken": cls, "x_norm_patchtokens": patches} for patches, cls in found]


def _timm_blocks(model: Any, images: Tensor, blocks: int) -> list[Any]:
    options = {"return_prefix_tokens": True, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    found = model.forward_intermediates(images, indices=blocks, **options)
    if not model.num_prefix_tokens:
        return list(found)
    return [{"x_norm_clstoken": prefix[:, 0], "x_norm_patchtokens": patches} for patches, prefix in found]


def _transformers_blocks(model: Any, images: Tensor, blocks: int) -> list[Any]:
    """Hidden states through the last norm; the last block's are what the network returns."""
    output, norm = model(images, output_hidden_states=True, **_any_size(model)), _last_norm(model)
    return [norm(state) for state in output.hidden_states[-blocks:-1]] + [output.last_hidden_state]


_SEVERAL: dict[str, Callable[[Any, Tensor, int], list[Any]]] = {
    "dinov2": _dinov2_blocks,
    "timm": _timm_blocks,
    "transformers": _transformers_blocks,
}


def _any_size(forward: Network) -> dict[str, bool]:
    """What a network of transformers needs to be told to take images of another size than it was made for."""
    called = getattr(forward, "forward", forward)
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in _parameters(called) else {}


def _parameters(function: Network | None) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters) if function is not None else frozenset()
    except ValueError:  # of something written in C
        return frozenset()
