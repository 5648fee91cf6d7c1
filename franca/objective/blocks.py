"""How much of a matrix is worked on at once."""

import torch

# Entries of a product before they are stored or turned into gradients: 64 MB in fp32 on a CPU. Accelerators have the
# memory for larger products, and need them to be busy.
SCORES = 2**24
SCORES_ON_ACCELERATOR = 2**28


def scores_at_once(device: torch.device) -> int:
    """Entries of a product on this device."""
    return SCORES if device.type == "cpu" else SCORES_ON_ACCELERATOR


def row_blocks(rows: int, width: int, entries: int) -> list[slice]:
    """Slices that cover `rows` rows of `width` entries, at most `entries` in each or one row."""
    step = max(1, entries // max(width, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
