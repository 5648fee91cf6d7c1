"""Where numbers were taken: device, releases, commit. And tables of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from franca.devices import peak_memory
from franca.peaks import name_of
from franca.reproduce.machine import commit

ROOT = Path(__file__).resolve().parents[2]


def facts(device: torch.device, precision: torch.dtype | None) -> dict[str, str]:
    """Of this machine and this code."""
    name = name_of(device)
    if device.type == "cpu":
        name += f", {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    kind = "fp32" if precision is None else str(precision).removeprefix("torch.").replace("bfloat16", "bf16")
    return {"device": name, "precision": kind, "torch": torch.__version__, "commit": commit()}


def reset_peak(device: torch.device) -> None:
    """Count the most that tensors hold from now on; the CPU's count is of the whole process and goes on."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """GB (10^9 bytes) that tensors held at most; on the CPU, the process's largest resident set."""
    return peak_memory(device) / 1e9


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))]  # noqa: B905
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
