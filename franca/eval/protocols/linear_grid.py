"""Linear classifiers for every learning rate and input, trained together by SGD with momentum.

Each is trained as if it were alone: none sees another's loss. One matrix product serves all learning rates of an input.

Legend: B images of a batch, D width of a token, L learning rates, C classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.eval.protocols.linear_head import HeadInput, LinearHead

SPREAD = 0.01  # standard deviation of the first weights


class HeadGrid:
    """L classifiers for each input.

    Args:
        reads: the inputs.
        rates: learning rates at the first step; they fall to 0 along half a cosine.
        classes: C.
        steps: of the whole training.
        momentum: of SGD. There is no weight decay.
        seed: of the first weights, which all learning rates of an input share.
    """

    def __init__(
        self,
        reads: Sequence[HeadInput],
        rates: Sequence[float],
        classes: int,
        steps: int,
        device: torch.device,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        self.reads, self.rates, self.classes, self.steps = tuple(reads), tuple(rates), classes, steps
        self.momentum, self.device, self.step = momentum, device, 0
        self._rates = torch.tensor(self.rates, device=device).view(-1, 1, 1)
        self._weights = [self._first(each, seed) for each in self.reads]  # (L * C, dim + 1) each, the bias last
        self._velocities = [torch.zeros_like(weights) for weights in self._weights]

    def _first(self, reads: HeadInput, seed: int) -> Tensor:
        random = generator("linear head", seed, reads.blocks, reads.width, reads.patch_width)
        weight = SPREAD * torch.randn(self.classes, reads.dim, generator=random)
        return torch.cat([weight, torch.zeros(self.classes, 1)], dim=1).repeat(len(self.rates), 1).to(self.device)

    @torch.no_grad()
    def learn(self, cls: Tensor, mean_patch: Tensor, labels: Tensor) -> None:
        """One step on a batch: both (B, blocks, D), labels (B,), on the device."""
        pace = (1 + math.cos(math.pi * self.step / self.steps)) / 2
        for reads, weights, velocity in zip(self.reads, self._weights, self._velocities, strict=True):
            inputs = _with_one(reads.of(cls, mean_patch))
            excess = (inputs @ weights.T).view(len(labels), -1, self.classes).softmax(dim=2)
            wanted = labels.view(-1, 1, 1).expand(-1, len(self.rates), 1)
            excess.scatter_add_(2, wanted, torch.full_like(excess[:, :, :1], -1.0))
            gradient = excess.flatten(1).T @ inputs / len(labels)  # of each head's mean cross-entropy
            velocity.mul_(self.momentum).add_(gradient)
            update = velocity.view(len(self.rates), self.classes, -1) * (pace * self._rates)
            weights.sub_(update.view_as(weights))
        self.step += 1

    def heads(self) -> list[tuple[LinearHead, float]]:
        """Every classifier whose weights are finite, with its learning rate: by input, then by rate, as given."""
        found = []
        for reads, weights in zip(self.reads, self._weights, strict=True):
            for rate, own in zip(self.rates, weights.view(len(self.rates), self.classes, -1), strict=True):
                if own.isfinite().all():
                    found.append((LinearHead(reads, own[:, :-1], own[:, -1]), rate))
        return found

    def state(self) -> dict[str, Any]:
        """Copies of all that a continued training needs, on the CPU."""
        return {
            "step": self.step,
            "weights": [weights.to("cpu", copy=True) for weights in self._weights],
            "velocities": [velocity.to("cpu", copy=True) for velocity in self._velocities],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.step = int(state["step"])
        for name, own in (("weights", self._weights), ("velocities", self._velocities)):
            for tensor, saved in zip(own, state[name], strict=True):
                tensor.copy_(saved)


def _with_one(inputs: Tensor) -> Tensor:
    """(B, dim) -> (B, dim + 1): what the bias is multiplied with."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
