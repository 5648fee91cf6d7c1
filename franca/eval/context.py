"""What every protocol is given: the backbone at work, stored features, where to write."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track as rich_track
from torch import Tensor

from franca.devices import compute_in
from franca.distributed import is_main
from franca.eval.backbones import Backbone
from franca.eval.errors import EvalError
from franca.eval.features import normalise
from franca.eval.store import FeatureStore
from franca.eval.tokens import Tokens

Item = TypeVar("Item")
logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0
DIVISORS = (1, 2, 4, 8, 16, 32, 64)  # of the width: the slices d, d/2 … d/64


def slice_name(divisor: int) -> str:
    """d, d/2 …"""
    return "d" if divisor == 1 else f"d/{divisor}"


def is_slice(dim: int, divisor: int) -> bool:
    """Whether a feature has this slice, rounded down or not."""
    return divisor <= dim and (divisor in DIVISORS or dim % divisor == 0)


def slice_width(dim: int, divisor: int) -> int:
    """Features of a slice; d/2 … d/64 are rounded down. Raises EvalError for none, or another that isn't whole."""
    if divisor > dim:
        raise EvalError(f"--slice d/{divisor}: a feature of width {dim} has no such slice; choose a wider one")
    if not is_slice(dim, divisor):
        raise EvalError(
            f"--slice d/{divisor} of {dim} features is no whole number of them ({dim / divisor:.2f}): choose a divisor "
            f"of {dim}"
        )
    return dim // divisor


@dataclass(frozen=True)
class Engine:
    """A backbone on its device."""

    backbone: Backbone
    device: torch.device
    autocast: torch.dtype | None = None  # compute in this type; None: in that of its parameters

    @torch.no_grad()
    def tokens(self, pixels: Tensor, blocks: int = 1) -> list[Tokens]:
        """Tokens of uint8 images (B, C, H, W) after each of the last ``blocks`` blocks, the last one last, fp32."""
        with compute_in(self.autocast, self.device):
            return self.backbone(self.normalised(pixels), blocks)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> what the network expects, on its device."""
        return normalise(pixels.to(self.device), self.backbone.mean, self.backbone.std)


@dataclass
class Context:
    """One evaluation's surroundings."""

    engine: Engine
    store: FeatureStore
    output: Path  # for what a protocol keeps beside its scores: trained heads, figures, the state of long training
    batch_size: int = 64
    workers: int = 0  # processes that decode images
    slices: tuple[int, ...] = (1,)  # divisors of the width: 1 is the whole feature, 2 its first half; (): all there are
    _rounded: set[tuple[int, int]] = field(default_factory=set)  # slices that were warned of: divisor and width

    @property
    def backbone(self) -> Backbone:
        """The network that is evaluated."""
        return self.engine.backbone

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.engine.device

    def tokens(self, pixels: Tensor, blocks: int = 1) -> list[Tokens]:
        """As `Engine.tokens`."""
        return self.engine.tokens(pixels, blocks)

    def widths(self, dim: int) -> dict[str, int]:
        """The slices asked for, widest first: {"d": 768, "d/2": 384}.

        d/2 … d/64 are rounded down, with a warning, where they are no whole number of features (thumbnails, colours).

        Raises EvalError as `slice_width`.
        """
        divisors = set(self.slices) or {divisor for divisor in DIVISORS if divisor <= dim}
        widths = {slice_name(divisor): slice_width(dim, divisor) for divisor in sorted(divisors)}
        for divisor in divisors:
            if dim % divisor and (divisor, dim) not in self._rounded:
                self._rounded.add((divisor, dim))
                logger.warning("slice %s: the first %d of %d features", slice_name(divisor), dim // divisor, dim)
        return widths

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """As `track`."""
        return track(items, description, total)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar where a person watches the first process; else a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from rich_track(items, description, total, console=console, disable=not is_main(), transient=True)
        return
    of = f" of {total}" if total else ""
    said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            logger.info("%s: %d%s", description, number, of)
