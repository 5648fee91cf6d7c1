"""One pretraining batch: crops of B images, and which patches of the global crops are masked.

B images, L local crops each, N patches of a global crop, M upper bound on the masked patches of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from franca.data.masking import Mask, MaskConfig
from franca.data.photometric import finish

Finish = Callable[[Tensor, Tensor, Tensor], Tensor]


class SkippedFile(NamedTuple):
    """A file that could not be used, and why.

    part: number of its source in a mixture. is_shard: it is a whole shard that gave nothing.
    """

    name: str
    reason: str
    part: int = 0
    is_shard: bool = False


@dataclass
class Crops:
    """The crops of one image: two global ones, each (C, H, W), and L local ones, (C, h, w).

    draws: (2 + L, changes.DRAWS), numbers that decide what is still to be changed; empty for finished crops.
    """

    global_: list[Tensor]
    local: list[Tensor]
    draws: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Sample:
    """Crops of the image that became sample ``number`` of the run, and the files skipped on the way to it.

    part: number of the image's source in a mixture.
    """

    crops: Crops
    number: int
    skipped: list[SkippedFile] = field(default_factory=list)
    part: int = 0


@dataclass
class PretrainBatch:
    """What a training step consumes.

    global_crops: (2B, C, H, W) float32, normalised, crop-major: crop 0 of all images, then crop 1
    local_crops: (L * B, C, h, w) float32, crop-major; None without local crops
    masks: (2B, N) bool, True = hidden from the student
    mask_indices: (M,) int64, places of the masked patches in the 2B * N patches, ascending; padded with 0
    mask_weights: (M,) float32, 1 / number of masked patches of the own crop; 0 for padding
    mask_valid: (M,) bool, False for padding
    n_images: B. sample_numbers, parts: of each image, its number in the run and that of its source in a mixture.
    skipped: files replaced while the batch was made
    """

    global_crops: Tensor
    local_crops: Tensor | None
    masks: Tensor
    mask_indices: Tensor
    mask_weights: Tensor
    mask_valid: Tensor
    n_images: int
    sample_numbers: list[int] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "PretrainBatch":
        """The same batch on another device; copies from pinned memory don't wait."""
        return self.with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PretrainBatch":
        """The same batch with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if isinstance(v, Tensor)})  # type: ignore[arg-type]


@dataclass
class LoadedBatch:
    """What the loader gives: a batch whose crops are still uint8 as cut, and how the training device finishes them.

    changes: (2 + L, B, changes.COLUMNS) float32. norm: (2, C), see photometric.finish.
    """

    cut: PretrainBatch
    changes: Tensor
    norm: Tensor

    def to(self, device: torch.device | str, finishing: Finish = finish) -> PretrainBatch:
        """The finished batch, on the device that trains; copies from pinned memory don't wait.

        finishing: photometric.finish, or the same compiled.
        """
        batch = self.cut.to(device)
        changes, norm = (tensor.to(device, non_blocking=True) for tensor in (self.changes, self.norm))
        local = batch.local_crops
        return replace(
            batch,
            global_crops=finishing(batch.global_crops, changes[:2].flatten(0, 1), norm),
            local_crops=None if local is None else finishing(local, changes[2:].flatten(0, 1), norm),
        )

    def pin_memory(self) -> "LoadedBatch":
        """The same in page-locked memory (the loader calls it when an accelerator is there)."""
        return LoadedBatch(self.cut.with_tensors(Tensor.pin_memory), self.changes.pin_memory(), self.norm.pin_memory())


def collate(samples: Sequence[Sample], mask: Mask, config: MaskConfig, generator: Generator) -> PretrainBatch:
    """Stacks the samples and draws the masks of their global crops.

    M depends on the number of samples, the patch grid and the configuration alone, so shapes are static.
    """
    crops = [sample.crops for sample in samples]
    masks, upper_bound = draw_masks(2 * len(crops), mask, config, generator)
    return PretrainBatch(
        global_crops=_crop_major([c.global_ for c in crops]),
        local_crops=_crop_major([c.local for c in crops]) if crops[0].local else None,
        masks=masks,
        **_masked_patches(masks, upper_bound),
        n_images=len(crops),
        sample_numbers=[sample.number for sample in samples],
        skipped=[file for sample in samples for file in sample.skipped],
        parts=[sample.part for sample in samples],
    )


def draw_masks(n_crops: int, mask: Mask, config: MaskConfig, generator: Generator) -> tuple[Tensor, int]:
    """Masks (n_crops, N) bool, and the most patches they could hide together.

    The share ``config.probability`` of the crops is masked. ``config.ratio`` is cut into as many equal strata, each
    masked crop draws its ratio uniformly from its own stratum, and the strata are dealt to the crops at random.
    """
    n_masked_crops = int(n_crops * config.probability)
    edges = torch.linspace(config.ratio[0], config.ratio[1], n_masked_crops + 1)
    largest = (mask.n_cells * edges[1:]).long()
    ratios = edges[:-1] + (edges[1:] - edges[:-1]) * torch.rand(n_masked_crops, generator=generator)
    counts = torch.minimum((mask.n_cells * ratios).long(), largest)  # rounding must not pass the stratum's edge

    masks = torch.zeros(n_crops, mask.n_cells, dtype=torch.bool)
    masked_crops = torch.randperm(n_crops, generator=generator)[:n_masked_crops].tolist()
    for crop, count in zip(masked_crops, counts.tolist(), strict=True):
        masks[crop] = mask(count, generator).flatten()
    return masks, int(largest.sum())


def _masked_patches(masks: Tensor, upper_bound: int) -> dict[str, Tensor]:
    found = masks.flatten().nonzero().squeeze(1)
    counts = masks.sum(dim=1)
    indices = torch.zeros(upper_bound, dtype=torch.int64)
    weights = torch.zeros(upper_bound)
    indices[: len(found)] = found
    weights[: len(found)] = (1.0 / counts)[found // masks.shape[1]]
    return {"mask_indices": indices, "mask_weights": weights, "mask_valid": torch.arange(upper_bound) < len(found)}


def _crop_major(crops: list[list[Tensor]]) -> Tensor:
    """B lists of n crops -> (n * B, C, H, W), the numbers in the same order in memory as in a crop."""
    every = [crop for same_place in zip(*crops, strict=True) for crop in same_place]
    if every[0].stride(0) == 1:  # the channels of a pixel lie together
        return torch.stack([crop.permute(1, 2, 0) for crop in every]).permute(0, 3, 1, 2)
    return torch.stack(every)
