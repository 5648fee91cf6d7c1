"""Self-attention over a flat sequence that holds crops of several sizes.

Legend: T tokens in all, D width; `sizes` lists (B_i, N_i), crops and tokens per crop, in the order in which they lie
in the sequence, so that T = sum of B_i * N_i.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = Sequence[tuple[int, int]]


def split_by_size(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """(T, D) -> one view (B_i, N_i, D) per size."""
    pieces = tokens.split([batch * length for batch, length in sizes])
    return [piece.view(batch, length, tokens.shape[-1]) for piece, (batch, length) in zip(pieces, sizes, strict=True)]


def join(pieces: Sequence[Tensor]) -> Tensor:
    """[(B_i, N_i, D)] -> (T, D); a single piece is not copied."""
    flat = [piece.flatten(0, 1) for piece in pieces]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


class Attention(nn.Module):
    """Multi-head self-attention, (T, D) -> (T, D): tokens attend within their own crop.

    The two linear layers see one long sequence; only the attention itself runs size by size.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        mixed = []
        for qkv in split_by_size(self.qkv(tokens), sizes):
            query, key, value = self._heads(qkv)
            mixed.append(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return self.proj(join(mixed))

    def maps(self, tokens: Tensor, sizes: Sizes) -> list[Tensor]:
        """The attention weights themselves, one (B_i, heads, N_i, N_i) per size in fp32; the last axis sums to 1."""
        maps = []
        for qkv in split_by_size(self.qkv(tokens), sizes):
            query, key, _ = self._heads(qkv)
            logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            maps.append(logits.softmax(dim=-1, dtype=torch.float32))
        return maps

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, 3D) -> query, key and value, each (B, heads, N, D / heads)."""
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value
