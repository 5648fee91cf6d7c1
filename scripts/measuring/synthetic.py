"""Batches of random pixels in the form in which the loader gives them."""

from collections.abc import Iterator
from itertools import cycle

import torch
from torch import Generator, Tensor

from franca.data.batch import Crops, LoadedBatch, Sample, collate
from franca.data.changes import DRAWS
from franca.data.multi_crop import MultiCrop
from franca.data.random_streams import generator
from franca.train.config import TrainConfig


def synthetic_batch(config: TrainConfig, number: int = 0) -> LoadedBatch:
    """Batch ``number``: shapes, masks and changes as real images give, pixels uniform (zeros would run faster)."""
    random = generator("synthetic batch", config.seed, number)
    crops = MultiCrop(config.data.crops)
    samples = [Sample(_crops(config, random), place) for place in range(config.data.batch_size)]
    side = config.data.crops.global_size // config.model.patch_size
    batch = collate(samples, config.data.mask.build((side, side)), config.data.mask, random)
    return LoadedBatch(batch, crops.changes_of([sample.crops for sample in samples]), crops.norm)


def synthetic_batches(config: TrainConfig, pinned: bool) -> Iterator[LoadedBatch]:
    """The batches of one optimizer step, again and again."""
    batches = [synthetic_batch(config, number) for number in range(config.accumulate)]
    return cycle([batch.pin_memory() for batch in batches] if pinned else batches)


def _crops(config: TrainConfig, random: Generator) -> Crops:
    wanted = config.data.crops
    large = [_pixels(wanted.global_size, config.data.channels, random) for _ in range(2)]
    small = [_pixels(wanted.local_size, config.data.channels, random) for _ in range(wanted.local_count)]
    return Crops(large, small, torch.rand(2 + wanted.local_count, DRAWS, generator=random))


def _pixels(side: int, channels: int, random: Generator) -> Tensor:
    """(C, S, S) uint8 with the channels of a pixel together in memory, as crops are cut."""
    return torch.randint(0, 256, (side, side, channels), dtype=torch.uint8, generator=random).permute(2, 0, 1)
