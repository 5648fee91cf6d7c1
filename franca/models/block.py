"""A pre-norm transformer block with LayerScale and stochastic depth, over a flat sequence of crops.

Legend: T tokens in all, D width; `sizes` lists (B_i, N_i) as in attention.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from franca.models.attention import Attention, Sizes
from franca.models.feed_forward import FEED_FORWARDS

Branch = Callable[[Tensor, Sizes], Tensor]


def draw_subset(batch: int, rate: float, device: torch.device) -> Tensor:
    """Samples whose branch runs: max(1, int(batch * (1 - rate))) distinct numbers below `batch`, drawn uniformly."""
    kept = max(1, int(batch * (1 - rate)))
    return torch.randperm(batch, device=device)[:kept]


class LayerScale(nn.Module):
    """(T, D) -> (T, D), each channel times a learned gain that starts at `value` (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.value)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    """(T, D) -> (T, D): x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    In training with `drop_path_rate` > 0 each branch runs on a random subset of the crops of each size only, and what
    it adds is scaled by B / kept; the other crops pass unchanged. This saves the dropped work, unlike a random gate.
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, ffn: str, init_values: float, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.ls1 = LayerScale(width, init_values)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FEED_FORWARDS[ffn](width, hidden)
        self.ls2 = LayerScale(width, init_values)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        tokens = self._add(tokens, sizes, self._attend)
        return self._add(tokens, sizes, self._feed_forward)

    def attention_maps(self, tokens: Tensor, sizes: Sizes) -> list[Tensor]:
        """Attention weights of this block for its input (T, D): one (B_i, heads, N_i, N_i) per size."""
        return self.attn.maps(self.norm1(tokens), sizes)

    def _attend(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        return self.ls1(self.attn(self.norm1(tokens), sizes))

    def _feed_forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        return self.ls2(self.mlp(self.norm2(tokens)))

    def _add(self, tokens: Tensor, sizes: Sizes, branch: Branch) -> Tensor:
        if not self.training or self.drop_path_rate == 0:
            return tokens + branch(tokens, sizes)
        rows, gain, kept = subset_rows(sizes, self.drop_path_rate, tokens.device)
        added = branch(tokens.index_select(0, rows), kept) * gain
        return tokens.index_add(0, rows, added.to(tokens.dtype))


def subset_rows(sizes: Sizes, rate: float, device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Draw the crops of each size that a branch sees.

    Returns their token rows in the flat sequence (R,), the gain B_i / kept_i of every row (R, 1), and the sizes of the
    sequence that those rows make up. Shapes depend on `sizes` and `rate` alone, so nothing waits for the device.
    """
    rows, gain, kept, start = [], [], [], 0
    for batch, length in sizes:
        chosen = draw_subset(batch, rate, device)
        inside = torch.arange(start, start + length, device=device)
        rows.append((chosen[:, None] * length + inside).flatten())
        gain.append(torch.full((len(chosen) * length, 1), batch / len(chosen), device=device))
        kept.append((len(chosen), length))
        start += batch * length
    return torch.cat(rows), torch.cat(gain), kept
