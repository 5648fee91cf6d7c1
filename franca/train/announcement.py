"""What a run says of itself when it starts."""

import torch

from franca.data.mixture import Mixture, describe
from franca.data.sources import Source
from franca.data.sources.shards import Shards
from franca.devices import compiler_trouble
from franca.distributed import local_world_size, world_size
from franca.objective import StudentTeacher
from franca.train.config import TrainConfig

SMALLEST_TESTED_BATCH = 32  # the quickstart's
FEW_IMAGES, MANY_PASSES = 1000, 100  # so few, taken so often, are learned by heart by a network from scratch


def opening_lines(
    config: TrainConfig,
    pair: StudentTeacher,
    device: torch.device,
    precision: torch.dtype | None,
    source: Source | Shards | Mixture,
) -> list[str]:
    """Network, place, data and batch; then warnings: a small batch, few images, no compiler, devices that are idle."""
    batch = config.effective_batch
    place = str(device) if world_size() == 1 else f"{world_size()} × {device.type} ({config.parallel.strategy})"
    arithmetic = "fp32" if precision is None else "bf16 autocast"
    parameters = sum(parameter.numel() for parameter in pair.student.parameters())
    lines = [
        f"{config.model.arch}, {parameters / 1e6:.1f} M parameters with heads, on {place} in {arithmetic}; "
        f"{describe(source)}; effective batch {batch}, peak lr {config.optimizer.peak_lr(batch):.2e}"
    ]
    if batch < SMALLEST_TESTED_BATCH:
        lines.append(
            f"WARNING: effective batch {batch} is below {SMALLEST_TESTED_BATCH}, the smallest that was tested; "
            "raise data.batch_size or accumulate"
        )
    if not isinstance(source, Shards | Mixture) and (few := few_images(len(source), config)):
        lines.append(f"WARNING: {few}")
    trouble = compiler_trouble(device) if config.parallel.compile is None and device.type != "cpu" else ""
    if trouble:
        lines.append(f"blocks are not compiled, which makes steps slower: {trouble}")
    visible = torch.accelerator.device_count()
    if device.type != "cpu" and visible > local_world_size():
        lines.append(
            f"WARNING: {visible} accelerators are visible, this run uses {local_world_size()}: start one process for "
            f"each, torchrun --nproc-per-node {visible} -m franca.train …"
        )
    return lines


def few_images(count: int, config: TrainConfig) -> str:
    """What is wrong with a run on so few, and what to do; "" where nothing is."""
    taken = config.steps * config.effective_batch / count
    if count < FEW_IMAGES and taken > MANY_PASSES and not config.init_from:
        return (
            f"{count} images, each taken {taken:,.0f} times in the run, which a network from scratch learns by heart: "
            "it needs some thousand, or published weights to begin with, init_from= (docs/first_run.md)"
        )
    if count < config.effective_batch:
        return f"{count} images are fewer than a step takes ({config.effective_batch}): lower data.batch_size"
    return ""
