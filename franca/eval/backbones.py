"""Frozen networks as evaluation sees them, by what the user calls them.

Legend: B images of C channels and H x W pixels, h x w patches, D width.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from franca.eval.baselines import BASELINES
from franca.eval.class_attention import class_token_attention
from franca.eval.errors import EvalError
from franca.eval.loaders import ModelName, load_network
from franca.eval.networks import blocks_of, channels_of, last_tokens, settings_of
from franca.eval.rasa_heads import check_width, rasa_for
from franca.eval.tokens import Tokens, patch_size_of
from franca.hub.checkpoint import hash_tensors
from franca.hub.load import ENTRY_POINTS
from franca.models import RASAHead

FORMS = (
    f"{', '.join(ENTRY_POINTS)} (each also as NAME@WEIGHTS), a checkpoint file or folder, the folder of a run, "
    "timm:NAME, transformers:NAME, torch_hub:REPO:NAME, callable:MODULE:FUNCTION, untrained:NAME or untrained:FILE, "
    f"{' or '.join(BASELINES)}"
)
PREFIXES = ("timm", "transformers", "torch_hub", "callable", "untrained")


class Backbone:
    """A frozen network, or any function of images, that gives tokens.

    Args:
        model: a network, or a function of images; what it may return is told by `franca.eval.tokens.read_tokens`.
        name: for people.
        mean, std: of the pixel values in [0, 1] that it expects, per channel.
        rasa: a head that the patches of the last block go through.
        source: what else than tensors and settings says which function it is: part of the hash.
        levels: parts of the feature that had a Matryoshka head of their own in training; empty where it isn't known.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        name: str = "the network",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        rasa: RASAHead | None = None,
        source: str = "",
        levels: Sequence[float] = (),
    ) -> None:
        self.model, self.name, self.rasa, self.source = model, name, rasa, source
        self.mean, self.std, self.levels = tuple(mean), tuple(std), tuple(levels)
        self.patch_size = patch_size_of(model)  # side in pixels; None: it doesn't say
        self.channels = channels_of(model) or len(self.mean)
        self.blocks = blocks_of(model)  # how many of the last blocks can be asked for; 1 of any function

    def __call__(self, images: Tensor, blocks: int = 1) -> list[Tokens]:
        """Tokens after each of the last blocks and the last norm, the last block last, fp32.

        Args:
            images: (B, C, H, W), normalised.
            blocks: how many, up to `self.blocks`.

        Raises:
            EvalError: images of a size that the network doesn't take, more blocks than it can tell, no tokens, or
                tokens of another width than the RASA head's.
        """
        tokens = last_tokens(self.model, images, blocks, self.name)
        if self.rasa is not None:
            tokens[-1] = Tokens(tokens[-1].cls, self._debiased(tokens[-1].patches))
        return tokens

    def attention(self, images: Tensor) -> Tensor:
        """How the last block's class token weighs the patches, (B, heads, h, w) fp32; the rest goes to other tokens.

        Raises:
            EvalError: not a ViT of Franca, DINOv2, timm or transformers with plain attention and a class token.
        """
        return class_token_attention(self.model, images, self.name)

    def to(self, device: torch.device) -> "Backbone":
        """Move the network, where it is one, and the head."""
        for part in (self.model, self.rasa):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @cached_property
    def hash(self) -> str:
        """sha256 of all that decides the features: tensors, settings, RASA, mean and std. The same in every process.

        A function, whatever network it uses within, is known by its name alone, module:function: stored features
        outlive a change of what it does, after which it needs another name, or the cache another folder. A network
        (nn.Module) is known by its tensors as well.
        """
        tensors = _tensors("model", self.model) | _tensors("rasa", self.rasa)
        decisive = [self.source, settings_of(self.model), hash_tensors(tensors), self.mean, self.std]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()

    def _debiased(self, patches: Tensor) -> Tensor:
        assert self.rasa is not None
        check_width(self.rasa, patches.shape[-1], self.name)
        with torch.autocast(patches.device.type, enabled=False):
            return self.rasa(patches)


def load_backbone(
    model: str, rasa: str | None = None, num_heads: int | None = None, img_size: int | None = None
) -> Backbone:
    """A backbone by what it is called, on the CPU.

    Args:
        model: franca_vitb14[@WEIGHTS] and the other entry points; a checkpoint file or folder of any layout that
            franca.hub reads; the folder of a run (its teacher.pth); timm:NAME and transformers:NAME (a model's name or
            a folder); torch_hub:REPO:NAME; callable:MODULE:FUNCTION (a function of images, or one without
            arguments that returns the network); untrained:NAME or untrained:FILE (that architecture with fresh weights
            from a fixed seed); pixels or colour (no network: `franca.eval.baselines`).
        rasa: None: as the file is; "inside": the head in the file, beside it or published for it; else the head's
            file. The patches of the last block then go through it.
        num_heads: of a checkpoint file: attention heads, where it doesn't tell.
        img_size: of a Franca network: side of the images for whose grid positions are stored.

    Raises:
        EvalError: there is no such model, or something that doesn't go together.
        CheckpointError, OSError: a file that can't be used.
    """
    asked = parse(model, rasa, num_heads, img_size)
    loaded = load_network(asked)
    source = "" if asked.kind in ("franca", "untrained") else f"{asked.kind}:{asked.repo}:{asked.name}"
    rasa_head = rasa_for(loaded.model, asked)
    return Backbone(loaded.model, model, loaded.mean, loaded.std, rasa_head, source, loaded.levels)


def parse(model: str, rasa: str | None = None, num_heads: int | None = None, img_size: int | None = None) -> ModelName:
    """What a name asks for; arguments and EvalError as `load_backbone`."""
    said = {"said": f"--model {model}", "chosen": f"--model {model}"}
    kind, _, name = model.partition(":")
    if kind in PREFIXES and name:
        repo, _, name = name.rpartition(":") if kind == "torch_hub" else ("", "", name)
        asked = ModelName(kind, name, repo, rasa=rasa, num_heads=num_heads, img_size=img_size, **said)
    elif model in BASELINES:
        asked = ModelName("baseline", model, rasa=rasa, num_heads=num_heads, img_size=img_size, **said)
    else:
        asked = ModelName("franca", model, rasa=rasa, num_heads=num_heads, img_size=img_size, **said)
    entry, _, weights = asked.name.partition("@")
    if asked.kind in ("franca", "untrained") and entry in ENTRY_POINTS:
        asked = replace(asked, name=entry, weights=weights or None)
    _check(asked)
    return asked


def _check(asked: ModelName) -> None:
    """Raise EvalError for what doesn't go together."""
    if not asked.name or (asked.kind == "torch_hub" and not asked.repo):
        raise EvalError(f"{asked.said} names no model; give {FORMS}")
    if (
        asked.kind in ("franca", "untrained")
        and asked.name not in ENTRY_POINTS
        and not Path(asked.name).expanduser().exists()
    ):
        nearest = difflib.get_close_matches(asked.name, [*ENTRY_POINTS, *BASELINES], n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise EvalError(f"{asked.said}: there is no such model or file{hint}; give {FORMS}")
    if asked.rasa == "inside" and asked.kind == "untrained":
        raise EvalError(f"--rasa inside: {asked.said} is untrained and has no head; --rasa FILE applies any")
    if asked.num_heads is not None and (asked.kind not in ("franca", "untrained") or asked.name in ENTRY_POINTS):
        raise EvalError(f"--num-heads {asked.num_heads} goes with a checkpoint file alone, not with {asked.said}")
    if asked.img_size is not None and asked.kind not in ("franca", "untrained"):
        raise EvalError(f"--img-size {asked.img_size} goes with Franca networks alone, not with {asked.said}")


def _tensors(prefix: str, part: object) -> dict[str, Tensor]:
    state = part.state_dict() if isinstance(part, nn.Module) else {}
    return {f"{prefix}.{name}": tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
