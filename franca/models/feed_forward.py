"""The two feed-forward networks of a block: SwiGLU (Shazeer 2020, the default) and the plain GELU MLP.

Legend: T tokens, D width, H hidden width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def swiglu_hidden(hidden: int) -> int:
    """Width of a SwiGLU that costs as much as an MLP of width `hidden`: two thirds, rounded up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class SwiGLU(nn.Module):
    """(T, D) -> (T, D): `w3(silu(a) * b)` where a and b are the two halves of `w12(x)`.

    `hidden` is the width of the MLP it stands in for; its own is `swiglu_hidden(hidden)`.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = swiglu_hidden(hidden)
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Mlp(nn.Module):
    """(T, D) -> (T, D): `fc2(gelu(fc1(x)))` with the exact (erf) GELU and `hidden` units between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


FEED_FORWARDS: dict[str, type[SwiGLU] | type[Mlp]] = {"swiglu": SwiGLU, "mlp": Mlp}
