"""Training of the heads of linear segmentation: one pass over the features for all slices, resumable at any step.

Legend: B images, h x w patches, D features, S x S pixels of a mask.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from franca.eval.protocols.linear_segmentation_head import accumulate_gradients
from franca.eval.protocols.progress_file import ProgressFile

LEAST_WARM_UP = 1e-6  # share of the learning rate at the first step
BETAS = (0.9, 0.999)
OPTIMIZERS = ("sgd", "adamw")

# steps -> features (B, h, w, D) fp32 and masks (B, S, S) uint8 of each of them, on the device of the heads
Batches = Callable[[range], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Recipe:
    """How heads are trained.

    optimizer: sgd or adamw. steps: in all. steps_per_epoch: the learning rate stays for so many (1: it changes with
    every step). warm_up: share of the steps over which it rises first.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    steps: int
    steps_per_epoch: int
    warm_up: float

    def lr_at(self, step: int) -> float:
        """Falls to 0 on a straight line, epoch by epoch; rises linearly at first (mmsegmentation's poly, power 1)."""
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        falling = 1 - step // self.steps_per_epoch / epochs
        rising = step / (self.warm_up * self.steps) if self.warm_up else 1.0
        return self.lr * falling * min(1.0, max(LEAST_WARM_UP, rising))

    def build(self, heads: nn.ModuleDict) -> Optimizer:
        """Heads share no parameter and no norm is clipped, so that each is trained as if it were alone."""
        if self.optimizer == "sgd":
            return SGD(heads.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        return AdamW(heads.parameters(), self.lr, BETAS, weight_decay=self.weight_decay)


def train(heads: nn.ModuleDict, batches: Batches, recipe: Recipe, progress: ProgressFile, name: str) -> None:
    """Train the heads to the end of the recipe, from where an earlier process was (``name`` in ``progress``)."""
    optimizer = recipe.build(heads)
    saved = progress.get(name)
    first = 0
    if saved is not None:
        first = saved["step"]
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
    heads.train()
    steps = range(first, recipe.steps)
    for step, (patches, masks) in zip(steps, batches(steps), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        if len(patches):
            _learn(heads, optimizer, patches, masks)
        if progress.due:
            progress.keep(name, _state(step + 1, heads, optimizer))
    if recipe.steps > first:
        progress.keep(name, _state(recipe.steps, heads, optimizer))
    heads.eval()


def _learn(heads: nn.ModuleDict, optimizer: Optimizer, patches: Tensor, masks: Tensor) -> None:
    optimizer.zero_grad()
    for head in heads.values():
        accumulate_gradients(head(patches), masks)
    optimizer.step()


def _state(step: int, heads: nn.ModuleDict, optimizer: Optimizer) -> dict[str, object]:
    """Copies, that later steps leave alone."""
    return {"step": step, "heads": deepcopy(heads.state_dict()), "optimizer": deepcopy(optimizer.state_dict())}
