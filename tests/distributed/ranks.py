"""Real processes that form a group, and one global batch dealt to any number of them."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from franca.data.batch import Crops, PretrainBatch, Sample, collate
from franca.data.loader import DataConfig
from franca.data.masking import MaskConfig
from franca.data.skip_log import SkipLog
from franca.distributed import process_group, rank, world_size
from tests import warm

IMAGES, PATCH, GLOBAL, LOCAL = 8, 14, 56, 28  # images of a global micro-batch; sides in pixels
MASKS = MaskConfig(probability=0.5)
PATIENCE = 500.0  # seconds for whatever several processes do together


def on_ranks(number: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``work(*arguments)`` in ``number`` processes of one group; what each returned, in rank order."""
    warm.preload()  # processes are forked from one server that has imported everything
    folder.mkdir(parents=True, exist_ok=True)
    given = (number, free_port(), str(folder), work, arguments)
    started = mp.start_processes(_enter, given, nprocs=number, join=False, start_method="forkserver")
    deadline = time.monotonic() + PATIENCE
    try:
        while not started.join(max(deadline - time.monotonic(), 0.0)):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{work.__name__} on {number} processes has not ended in {PATIENCE:.0f} seconds")
    finally:  # none is left behind, also where the test is ended meanwhile
        for process in started.processes:
            process.kill()
    return [torch.load(folder / f"rank{place}.pt", weights_only=True) for place in range(number)]


def command_on_ranks(number: int, command: warm.Command, folder: Path, log: Path) -> list[int]:
    """The command in ``number`` processes that are told of each other as torchrun does it; their exit statuses."""
    port = free_port()
    started = [
        warm.start(
            command, folder=folder, environment=os.environ | launched(place, number, port), stdout=log, stderr=log
        )
        for place in range(number)
    ]
    try:
        return [warm.wait(process) for process in started]
    finally:
        for process in started:
            process.kill()


def _enter(
    place: int, number: int, port: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= launched(place, number, port)
    with process_group("cpu", timeout_minutes=2):
        torch.save(work(*arguments), f"{folder}/rank{place}.pt")


def launched(place: int, number: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process of one machine."""
    ranks = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    return {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DealtBatches:
    """In place of PretrainLoader: batch n of ``IMAGES`` images, a function of n, of which every rank gets its share."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.rank, self.world_size = rank(), world_size()
        self.config = DataConfig(batch_size=IMAGES // self.world_size)
        self.skipped = SkipLog(1.0, IMAGES)
        self.images = 0

    def state_dict(self) -> dict[str, Tensor]:
        """How many images all ranks have been given."""
        return {"images": torch.tensor(self.images)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self.images = int(state["images"])

    def batches(self) -> Iterator[PretrainBatch]:
        """This rank's shares of the batches from there on."""
        while True:
            self.images += IMAGES
            yield share(global_batch(self.images // IMAGES), self.rank, self.world_size)


def global_batch(number: int) -> PretrainBatch:
    """Crops of noise with a mean of their own, in the default floating type."""
    generator = torch.Generator().manual_seed(number)

    def crops(side: int) -> list[Tensor]:
        return [
            torch.randn(3, side, side, generator=generator) + torch.randn(3, 1, 1, generator=generator) for _ in "ab"
        ]

    samples = [Sample(Crops(crops(GLOBAL), crops(LOCAL)), number * IMAGES + place) for place in range(IMAGES)]
    return collate(samples, MASKS.build((GLOBAL // PATCH, GLOBAL // PATCH)), MASKS, generator)


class Finished(PretrainBatch):
    """In place of LoadedBatch: nothing is left to be done about its crops."""

    def to(self, device: torch.device | str, *_: Any) -> PretrainBatch:
        """On the device."""
        return super().to(device)


def share(batch: PretrainBatch, place: int, number: int) -> Finished:
    """The rank's images with the masks they have in the whole batch; rows of patches padded to those of the whole."""
    each = batch.n_images // number

    def own(crops: Tensor) -> Tensor:
        """(n * B, ...) -> (n * B / number, ...), crop-major both."""
        return crops.unflatten(0, (-1, batch.n_images))[:, place * each : (place + 1) * each].flatten(0, 1)

    masks = own(batch.masks)
    found = masks.flatten().nonzero().squeeze(1)
    padding = len(batch.mask_indices) - len(found)
    assert batch.local_crops is not None
    kind = torch.get_default_dtype()
    weights = (1.0 / masks.sum(dim=1).to(kind))[found // masks.shape[1]]
    return Finished(
        global_crops=own(batch.global_crops).to(kind),
        local_crops=own(batch.local_crops).to(kind),
        masks=masks,
        mask_indices=torch.cat([found, found.new_zeros(padding)]),
        mask_weights=torch.cat([weights, weights.new_zeros(padding)]),
        mask_valid=torch.arange(len(found) + padding) < len(found),
        n_images=each,
        sample_numbers=batch.sample_numbers[place * each : (place + 1) * each],
    )
