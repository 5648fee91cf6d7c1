"""Models by name or from any file, and the entry points of `hubconf.py`."""

import difflib
import functools
import sys
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

from franca.hub.architecture import backbone_sizes
from franca.hub.cache import fetch, fetch_backbone, is_there
from franca.hub.checkpoint import CheckpointError
from franca.hub.files import find_in_folder, is_library_folder, rasa_beside, read_file
from franca.hub.layouts import Recognised, build, build_rasa, recognise, recognise_rasa
from franca.hub.names import State
from franca.hub.registry import DEFAULTS, LICENCE, SHORT_NAMES, Published, find, is_published
from franca.models import BACKBONES, VisionTransformer

GRID, PATCH = 518, 14  # pixels, of an untrained network and of every entry point
FFN = "swiglu"  # of every entry point
Source = str | PathLike[str] | Mapping[str, Any]  # a file, a folder, or tensors by name


class HubOptions(TypedDict, total=False):
    """Keyword arguments of the entry points.

    weights: which published weights; None: IN21K for ViT-B, LAION for ViT-L and ViT-g. Any spelling of their names.
    pretrained: False gives an untrained network.
    use_rasa_head: attach the RASA head, which `forward_features(…, use_rasa_head=True)` uses: the one inside the file,
        in `<name>_rasa.pth` beside it, or published for these weights. A local file, whatever its name, gets a
        published head only where `weights` says which weights it holds.
    img_size: side in pixels of the square image for whose grid positions are stored; None: as in the file. Other sizes
        are taken as well, and resampled in every forward pass.
    local_state_dict: a file (.pth, .safetensors, .tar.gz), a folder that holds it, or tensors by name, in place of the
        published file.
    RASA_local_state_dict: the same for the RASA head; giving one attaches it.
    """

    weights: str | None
    pretrained: bool
    use_rasa_head: bool
    img_size: int | None
    local_state_dict: Source | None
    RASA_local_state_dict: Source | None


def franca_vits14(**options: Unpack[HubOptions]) -> VisionTransformer:
    """Franca ViT-S/14, for a file of your own (local_state_dict=…) or pretrained=False: no weights are published."""
    return _load_size("vit_small", **options)


def franca_vitb14(**options: Unpack[HubOptions]) -> VisionTransformer:
    """Franca ViT-B/14: weights IN21K (the default), IN21K_224, DINOV2_IN21K or DINOV2_IN21K_518."""
    return _load_size("vit_base", **options)


def franca_vitl14(**options: Unpack[HubOptions]) -> VisionTransformer:
    """Franca ViT-L/14: weights LAION (the default), LAION_224, LAION_518, DINOV2_IN21K or DINOV2_IN21K_518."""
    return _load_size("vit_large", **options)


def franca_vitg14(**options: Unpack[HubOptions]) -> VisionTransformer:
    """Franca ViT-g/14: weights LAION."""
    return _load_size("vit_giant2", **options)


ENTRY_POINTS: dict[str, Callable[..., VisionTransformer]] = {
    entry.__name__: entry for entry in (franca_vits14, franca_vitb14, franca_vitl14, franca_vitg14)
}


def load_model(
    name: str | None = None,
    *,
    checkpoint: Source | None = None,
    num_heads: int | None = None,
    **options: Unpack[HubOptions],
) -> VisionTransformer:
    """A model by the name of its entry point, or from any checkpoint; in eval mode on the CPU.

    It takes images (B, C, H, W), normalised as in training: with ImageNet's mean and std for published weights, with
    `mean` and `std` of `describe(checkpoint)` for those of this project. README.md shows the way from an image file to
    its features.

    Args:
        name: "franca_vitb14" and the like; `options` are those of the entry points (HubOptions).
        checkpoint: instead of a name, a file or folder in any layout that is recognised, or tensors by name. The
            architecture and the grid of positions come from its description or its tensors. Of the options, it takes
            use_rasa_head, img_size and RASA_local_state_dict.
        num_heads: attention heads of the checkpoint; None: as it or its folder tells, else by its width: / 64, or 16
            where networks of that width are known to have so many (1280, of ViT-H).

    What had to be guessed or filled in for a checkpoint is printed on stderr, once.

    Raises:
        TypeError, ValueError: no such entry point or published weights, or arguments that don't go together.
        FileNotFoundError: there is no such file.
        CheckpointError: a file that can't be used, with the reason.
        DownloadError: published weights can't be fetched.
    """
    if (name is None) == (checkpoint is None):
        raise ValueError(f"give either the name of an entry point ({', '.join(ENTRY_POINTS)}) or checkpoint=FILE")
    if checkpoint is not None:
        _check_options(options)
        rasa, wanted = options.get("RASA_local_state_dict"), options.get("use_rasa_head", False)
        return _load_checkpoint(checkpoint, num_heads, wanted, options.get("img_size"), rasa)
    if num_heads is not None:
        raise ValueError(f"num_heads=… goes with checkpoint=…; {name} has a fixed number of heads")
    return _entry_point(str(name))(**options)


def _entry_point(name: str) -> Callable[..., VisionTransformer]:
    if name in ENTRY_POINTS:
        return ENTRY_POINTS[name]
    nearest = difflib.get_close_matches(name.lower(), ENTRY_POINTS, n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    file = "; a file is given as checkpoint=…" if Path(name).exists() or Path(name).suffix else ""
    raise ValueError(f"no entry point {name!r}{hint}; there are: {', '.join(ENTRY_POINTS)}{file}")


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for options that say nothing about a checkpoint."""
    allowed = ("use_rasa_head", "img_size", "RASA_local_state_dict")
    for option in options:
        if option not in allowed:
            raise TypeError(f"{option}=… does not go with checkpoint=…, which takes num_heads, {', '.join(allowed)}")


def _load_checkpoint(
    checkpoint: Source, num_heads: int | None, use_rasa_head: bool, img_size: int | None, rasa: Source | None
) -> VisionTransformer:
    origin, content = _read(checkpoint, "checkpoint")
    recognised = recognise(content, origin, num_heads)
    model = build(recognised)
    for note in recognised.notes:
        _say(f"note on {origin}: {note}")
    if rasa is not None:
        _attach(model, *_read_rasa(rasa, None))
    elif use_rasa_head:
        _attach(model, *_find_rasa(recognised, None))
    return _resized(model, img_size)


def _load_size(
    arch: str,
    weights: str | None = None,
    pretrained: bool = True,
    use_rasa_head: bool = False,
    img_size: int | None = None,
    local_state_dict: Source | None = None,
    RASA_local_state_dict: Source | None = None,
) -> VisionTransformer:
    """What the entry point of a size does; arguments as in HubOptions."""
    if not pretrained:
        if local_state_dict is not None:
            raise ValueError("pretrained=False builds an untrained network, but local_state_dict=… is given: drop one")
        return _untrained(arch, weights, img_size, use_rasa_head, RASA_local_state_dict)
    published = None if local_state_dict is not None and weights is None else find(arch, weights)
    if local_state_dict is None and published:
        if use_rasa_head and RASA_local_state_dict is None and not (published.rasa or is_there(published.name)):
            raise _no_rasa(f"the published {published.name}", published)  # before a gigabyte is fetched
        _say(LICENCE)
        local_state_dict = fetch_backbone(published)
    assert local_state_dict is not None  # `find` gave weights, or raised
    origin, content = _read(local_state_dict, "local_state_dict", published or _default(arch))
    recognised = recognise(content, origin)
    _check_size(arch, recognised)
    model = build(recognised)
    if RASA_local_state_dict is not None:
        _attach(model, *_read_rasa(RASA_local_state_dict, published or _default(arch)))
    elif use_rasa_head:
        _attach(model, *_find_rasa(recognised, published))
    return _resized(model, img_size)


def _untrained(
    arch: str, weights: str | None, img_size: int | None, use_rasa_head: bool, rasa: Source | None
) -> VisionTransformer:
    if use_rasa_head and rasa is None:
        raise ValueError("use_rasa_head=True with pretrained=False: an untrained network has no RASA head")
    if img_size is None:
        img_size = find(arch, weights).img_size if weights and arch in DEFAULTS else GRID
    model = BACKBONES[arch](img_size=img_size).eval()
    if rasa is not None:
        _attach(model, *_read_rasa(rasa, None))
    return model


def _read(source: Source, argument: str, published: Published | None = None, rasa: bool = False) -> tuple[str, Any]:
    """Where tensors come from, in words, and what is there."""
    if isinstance(source, Mapping):
        return f"the mapping given as {argument}", source
    path = Path(source)
    if path.is_dir() and (rasa or not is_library_folder(path)):
        path = find_in_folder(path, published, rasa)
    if is_published(path.name):
        _say(LICENCE)
    return str(path), read_file(path)


def _read_rasa(source: Source, published: Published | None) -> tuple[str, State]:
    origin, content = _read(source, "RASA_local_state_dict", published, rasa=True)
    return origin, recognise_rasa(content, origin)


def _find_rasa(recognised: Recognised, published: Published | None) -> tuple[str, State]:
    """The RASA head inside the checkpoint, beside it, or published; else an error that says how to get one."""
    origin = recognised.origin
    if "patch_map.weight" in recognised.backbone:
        raise CheckpointError(f"use_rasa_head=True: RASA is folded into {origin}, x_norm_patchtokens hold no position")
    if recognised.rasa is not None:
        return origin, recognised.rasa
    beside = rasa_beside(Path(origin)) if Path(origin).exists() else None
    if beside is not None:
        return _read_rasa(beside, None)
    if published and published.rasa:
        return _read_rasa(fetch(published.rasa), None)
    raise _no_rasa(origin, published)


def _no_rasa(origin: str, published: Published | None) -> CheckpointError:
    weights = f"for {published.weights} of {published.arch}" if published else "for it"
    return CheckpointError(
        f"use_rasa_head=True, but {origin} holds no RASA head and none is published {weights}: give one as "
        "RASA_local_state_dict=…, or train one with python -m rasa.train"
    )


def _attach(model: VisionTransformer, origin: str, rasa: State) -> None:
    model.rasa_head = build_rasa(rasa, model.embed_dim, origin)


def _resized(model: VisionTransformer, img_size: int | None) -> VisionTransformer:
    if img_size is not None:
        model.set_resolution(img_size)
    return model


def _check_size(arch: str, recognised: Recognised) -> None:
    """Raise CheckpointError where a file is not of the entry point's size and kind."""
    keys = ("embed_dim", "depth", "num_heads", "patch_size", "ffn")
    found = tuple(recognised.config.get(key) for key in keys)
    wanted = (*backbone_sizes()[arch], PATCH, FFN)
    if found != wanted:
        words = "width {}, {} blocks, {} heads, patch {}, {}"
        raise CheckpointError(
            f"{recognised.origin} holds a {recognised.arch} backbone ({words.format(*found)}), "
            f"franca_{SHORT_NAMES[arch]} is {arch} ({words.format(*wanted)}): take the entry point of its size, or "
            "franca.load_model(checkpoint=…)"
        )


def _default(arch: str) -> Published | None:
    return find(arch) if arch in DEFAULTS else None


@functools.cache
def _say(text: str) -> None:
    """Once in a process."""
    print(text, file=sys.stderr)
