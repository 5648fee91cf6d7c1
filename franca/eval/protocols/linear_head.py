"""A trained linear classifier: what it reads of the features, its weights, and its file.

Legend: N images, D width of a token, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from franca.eval.errors import EvalError
from franca.eval.store import ImageFeatures
from franca.files import write_atomically

FORMAT = 1
AT_ONCE = 8192  # rows


@dataclass(frozen=True)
class HeadInput:
    """Class tokens of the last blocks side by side, then the mean patch of the last (DINOv2).

    Attributes:
        blocks: how many. width: of every class token, its first features. patch_width: of the mean patch (0: none).
    """

    blocks: int
    width: int
    patch_width: int = 0

    @property
    def dim(self) -> int:
        """Width of what the classifier reads."""
        return self.blocks * self.width + self.patch_width

    def of(self, cls: Tensor, mean_patch: Tensor) -> Tensor:
        """(N, blocks or more, D) each, the last block last -> (N, dim) fp32."""
        parts = [cls[:, cls.shape[1] - self.blocks :, : self.width].flatten(1)]
        parts.append(mean_patch[:, -1, : self.patch_width])
        return torch.cat([part.float() for part in parts], dim=1)


@dataclass(frozen=True)
class LinearHead:
    """Scores of the classes: inputs @ weight.T + bias."""

    reads: HeadInput
    weight: Tensor  # (C, dim)
    bias: Tensor  # (C,)

    def to(self, device: torch.device) -> "LinearHead":
        """The same on another device."""
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    @torch.no_grad()
    def scores(self, features: ImageFeatures) -> Tensor:
        """(N, C) fp32 on the CPU, some rows at a time."""
        found = []
        for start in range(0, len(features.index), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            inputs = self.reads.of(features.cls[rows], features.mean_patch[rows])
            inputs = inputs.to(self.weight.device, self.weight.dtype)
            found.append(torch.addmm(self.bias, inputs, self.weight.T).float().cpu())
        return torch.cat(found)


def save_head(path: Path, head: LinearHead, about: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write a classifier with a description of model, data and how it was chosen. Raises OSError."""
    content = {
        "format": FORMAT,
        "reads": asdict(head.reads),
        "weight": head.weight.cpu(),
        "bias": head.bias.cpu(),
        "classes": list(classes),
        "about": dict(about),
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_head(path: Path) -> tuple[LinearHead, dict[str, Any], list[str]]:
    """Classifier, description and names of the classes that `save_head` wrote. Raises EvalError for another file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise EvalError(f"{path} has format {content['format']}, this version reads {FORMAT}: train it again")
        head = LinearHead(HeadInput(**content["reads"]), content["weight"], content["bias"])
        return head, content["about"], content["classes"]
    except EvalError:
        raise
    except Exception as error:  # torch.load raises nearly anything on files of other kinds
        raise EvalError(f"{path} holds no classifier of franca.eval ({type(error).__name__}: {error})") from error
