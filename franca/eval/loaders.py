"""Networks by name, from every place that holds them; each of its library's own class, in eval mode, on the CPU."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.baselines import BASELINES
from franca.eval.errors import EvalError
from franca.hub import CheckpointError, DownloadError, describe, load_model
from franca.hub.load import ENTRY_POINTS
from franca.models import VisionTransformer

UNTRAINED_SEED = 0
TEACHER = "teacher.pth"  # what training leaves in the folder of a run
PUBLISHED_LEVELS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the authors' weights (paper Sec. 2.1)
LOCAL_DIR = "local-dir:"  # how timm calls a folder


@dataclass(frozen=True)
class ModelName:
    """Which network.

    kind: one of KINDS. name: for "franca" and "untrained" an entry point such as franca_vitb14, a checkpoint file or
    folder of any layout that franca.hub reads, or the folder of a run; for "timm" a model's name or a folder, also as
    local-dir:FOLDER; for "transformers" a model id or folder; for "torch_hub" an entry point of `repo`; for "callable"
    module:function, a function of images or one without arguments that returns the network; for "baseline" one of
    BASELINES.
    """

    kind: str
    name: str
    repo: str = ""  # torch_hub alone: owner/name, or a local clone
    weights: str | None = None  # franca entry points alone: which published weights
    num_heads: int | None = None  # checkpoint files alone: attention heads, where the file doesn't tell
    img_size: int | None = None  # franca alone: side of the images for whose grid positions are stored
    rasa: str | None = None  # "inside" or a file; a head inside a Franca file is attached to the network
    said: str = ""  # for errors: how the user named the model
    chosen: str = ""  # for errors: how the user chose the kind


@dataclass(frozen=True)
class Loaded:
    """A network, or a function of images; how its images are normalised; its Matryoshka levels where they are known."""

    model: Callable[..., Any]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    levels: Sequence[float] = ()  # parts of the feature that had a head of their own in training, growing up to 1


def load_network(asked: ModelName) -> Loaded:
    """The network, frozen.

    Raises:
        EvalError: it can't be had, with what was asked for and what to do.
        CheckpointError, OSError: a file that can't be used.
    """
    loaded = KINDS[asked.kind](asked)
    if isinstance(loaded.model, nn.Module):
        loaded.model.eval().requires_grad_(False)
    return loaded


def _franca(asked: ModelName) -> Loaded:
    options: dict[str, Any] = {"img_size": asked.img_size, "use_rasa_head": asked.rasa == "inside"}
    with _in_words(asked):
        if asked.name in ENTRY_POINTS:
            return Loaded(load_model(asked.name, weights=asked.weights, **options), levels=PUBLISHED_LEVELS)
        file = _checkpoint(asked)
        about = describe(file, asked.num_heads)
        model = load_model(checkpoint=file, num_heads=asked.num_heads, **options)
        return Loaded(model, about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD), _levels(about))


def _levels(about: Mapping[str, Any]) -> tuple[float, ...]:
    """Matryoshka levels of a checkpoint that holds, or describes, its heads."""
    for head in (about.get("heads") or {}).values():
        if head.get("nesting"):  # a teacher file of this project
            return tuple(head["nesting"])
        if head.get("widths"):
            return tuple(width / max(head["widths"]) for width in head["widths"])
    return ()


def _untrained(asked: ModelName) -> Loaded:
    """The architecture as training would begin with it, the same each time."""
    with _in_words(asked), torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        if asked.name in ENTRY_POINTS:
            options: dict[str, Any] = {"weights": asked.weights, "img_size": asked.img_size}
            return Loaded(load_model(asked.name, pretrained=False, **options))
        about = describe(_checkpoint(asked), asked.num_heads)
        changed = {} if asked.img_size is None else {"img_size": asked.img_size}
        model = VisionTransformer(**about["backbone"] | changed)
        return Loaded(model, about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD))


@contextlib.contextmanager
def _in_words(asked: ModelName) -> Iterator[None]:
    """What the hub raises for a model that can't be had so, with how the user named it."""
    try:
        yield
    except DownloadError as error:
        raise EvalError(f"{asked.said}: {error}. A file that is there already can be named instead") from None
    except EvalError:
        raise
    except CheckpointError as error:
        if asked.rasa != "inside":
            raise
        raise EvalError(f"--rasa inside: {error}. On the command line, --rasa FILE gives a head") from error
    except ValueError as error:  # no such published weights, a size that patches don't divide
        raise EvalError(f"{asked.said}: {error}") from error


def _checkpoint(asked: ModelName) -> Path:
    """The file or folder that the hub reads; of a run's folder, the teacher. Raises EvalError where nothing is."""
    path = Path(asked.name).expanduser()
    if not path.exists():
        raise EvalError(
            f"{asked.said} is neither a checkpoint file, nor a folder that holds one, nor one of "
            f"{', '.join(ENTRY_POINTS)}"
        )
    return path / TEACHER if (path / TEACHER).is_file() else path


def _timm(asked: ModelName) -> Loaded:
    timm = _library("timm", asked)
    name = LOCAL_DIR + asked.name if Path(asked.name).is_dir() else asked.name
    create = functools.partial(timm.create_model, name, pretrained=True, num_classes=0)
    try:
        try:
            model = create(dynamic_img_size=True)
        except TypeError:  # networks that take any size as they are, or one alone
            model = create()
    except (RuntimeError, TypeError, OSError) as error:  # no such model, no weights
        raise EvalError(
            f"timm can't make {asked.said}: {error}. A folder with its config.json and weights is named as "
            f"{LOCAL_DIR}FOLDER"
        ) from None
    stated = model.pretrained_cfg
    return Loaded(model, stated.get("mean", IMAGENET_MEAN), stated.get("std", IMAGENET_STD))


def _transformers(asked: ModelName) -> Loaded:
    transformers = _library("transformers", asked)
    try:
        with torch.random.fork_rng(devices=[]):  # what a file doesn't hold, such as a pooler, is drawn: always the same
            torch.manual_seed(UNTRAINED_SEED)
            model = transformers.AutoModel.from_pretrained(asked.name)
    except (OSError, ValueError) as error:
        raise EvalError(
            f"transformers can't load {asked.said}: {error}. A folder with its config.json and weights does as well"
        ) from None
    with contextlib.suppress(OSError, ValueError):  # no preprocessor_config.json
        stated = transformers.AutoImageProcessor.from_pretrained(asked.name)
        return Loaded(model, stated.image_mean, stated.image_std)
    return Loaded(model)


def _torch_hub(asked: ModelName) -> Loaded:
    source = "local" if Path(asked.repo).is_dir() else "github"
    try:
        return Loaded(torch.hub.load(asked.repo, asked.name, source=source))
    except RuntimeError as error:  # no such entry point, or a package that it needs
        raise EvalError(f"{asked.repo!r} has no {asked.said} that loads: {error}") from error


def _callable(asked: ModelName) -> Loaded:
    module, _, function = asked.name.partition(":")
    if not function:
        raise EvalError(f"{asked.said}: give module:function, such as my_model:build")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise EvalError(f"{asked.said} is no module:function that can be imported from here ({error})") from error
    model = found() if _takes_nothing(found) else found
    return Loaded(model, getattr(model, "mean", IMAGENET_MEAN), getattr(model, "std", IMAGENET_STD))


def _baseline(asked: ModelName) -> Loaded:
    model = BASELINES[asked.name]()
    return Loaded(model, model.mean, model.std)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Whether it makes the network, rather than being it: it can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _library(name: str, asked: ModelName) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise EvalError(f"{asked.chosen} needs the package {name}: pip install {name}") from error


KINDS: dict[str, Callable[[ModelName], Loaded]] = {
    "franca": _franca,
    "timm": _timm,
    "transformers": _transformers,
    "torch_hub": _torch_hub,
    "callable": _callable,
    "untrained": _untrained,
    "baseline": _baseline,
}
