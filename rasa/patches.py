"""Patches for the gradient solver: some of every crop, computed once and kept, or computed anew for every epoch.

Legend: V crops, P patches kept of each, D width.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from franca.data.random_streams import generator
from franca.eval.protocols.position import chance_mse, grid_positions
from rasa.crops import Crops
from rasa.errors import RasaError
from rasa.features import Engine

LARGEST_HALF = 65504.0  # of fp16
DISK_MARGIN = 1 << 30  # bytes left free


class Patches(Protocol):
    """Features of patches and where they lie."""

    width: int
    chance: float  # mean squared error of always predicting the centre
    device: torch.device

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch."""
        ...

    def batches(self, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, P, D) and positions (B, P, 2), fp32 on the device, in an order of the epoch's own."""
        ...

    def root_mean_square(self) -> float:
        """Of the features' entries."""
        ...


@dataclass
class CacheConfig:
    """What is kept of a pass for the gradient solver.

    where: "memory", "disk" (a file in the output folder, read through a memory map), "off" (nothing: the backbone runs
    in every epoch), or "auto": memory up to `memory_gb` gigabytes, else disk where it has room, else off.
    patches: so many of each crop, drawn at random; 0 keeps all. A predictor has 2 D weights, so some hundred do.
    """

    where: str = "auto"
    memory_gb: float = 8.0
    patches: int = 256

    def __post_init__(self) -> None:
        if self.where not in ("auto", "memory", "disk", "off"):
            raise ValueError(f"cache.where={self.where!r}: choose auto, memory, disk or off")
        if self.patches < 0 or self.memory_gb < 0:
            raise ValueError(f"cache.patches={self.patches}, cache.memory_gb={self.memory_gb}: must not be negative")

    def kept(self, cells: int) -> int:
        """Patches kept of a crop of so many."""
        return min(self.patches or cells, cells)

    def place(self, size: int, folder: Path) -> str:
        """Where `size` bytes go: memory, disk or off. Raises RasaError when the disk was asked for and is full."""
        room = size + DISK_MARGIN <= shutil.disk_usage(folder).free
        if self.where == "disk" and not room:
            raise RasaError(
                f"cache.where=disk needs {size / 1e9:.1f} GB and {folder} has no room: free some, lower cache.patches="
                f"{self.patches} or data.max_images, or set cache.where=off"
            )
        if self.where != "auto":
            return self.where
        return "memory" if size <= self.memory_gb * 1e9 else "disk" if room else "off"


class CachedPatches:
    """Patches computed once, (V, P, D) in fp16, in memory or in a mapped file."""

    def __init__(self, features: Tensor, cells: Tensor, grid: tuple[int, int], device: torch.device) -> None:
        self.features, self.cells, self.device = features, cells, device
        self.width = features.shape[-1]
        self.positions = grid_positions(*grid).float()
        self.chance = chance_mse(*grid)

    def steps(self, batch_size: int) -> int:
        return -(-len(self.features) // batch_size)

    def batches(self, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.features), generator=generator("rasa epoch", epoch))
        for chosen in order.split(batch_size):
            chosen = chosen.sort().values  # a mapped file is read forwards
            positions = self.positions[self.cells[chosen].long()]
            yield self.features[chosen].to(self.device).float(), positions.to(self.device)

    def root_mean_square(self) -> float:
        sample = self.features[:: len(self.features) // 256 + 1].float()
        return sample.square().mean().sqrt().item()


class FreshPatches:
    """Patches of new crops in every epoch, as the original does: the backbone runs each time."""

    def __init__(self, engine: Engine, crops: Crops, kept: int, first: Tensor) -> None:
        self.engine, self.crops, self.kept, self.first = engine, crops, kept, first
        self.device = engine.device
        self.width = first.shape[-1]
        self.positions = grid_positions(*first.shape[1:3]).float()
        self.chance = chance_mse(*first.shape[1:3])

    def steps(self, batch_size: int) -> int:
        return -(-len(self.crops) // batch_size)

    def batches(self, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        features = torch.empty(0, self.kept, self.width, device=self.device)
        cells = torch.empty(0, self.kept, dtype=torch.int64)
        for number, grids in enumerate(self.engine.batches(self.crops, epoch)):
            drawn, drawn_cells = draw_patches(grids, self.kept, generator("rasa patches", epoch, number))
            features, cells = torch.cat([features, drawn]), torch.cat([cells, drawn_cells])
            while len(features) >= batch_size:
                yield features[:batch_size], self.positions[cells[:batch_size]].to(self.device)
                features, cells = features[batch_size:], cells[batch_size:]
        if len(features):
            yield features, self.positions[cells].to(self.device)

    def root_mean_square(self) -> float:
        return self.first.square().mean().sqrt().item()


def draw_patches(grids: Tensor, kept: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """`kept` patches of each crop, without repetition: (B, h, w, D) -> (B, P, D), and their cells (B, P)."""
    patches = grids.flatten(1, 2)
    count, cells = patches.shape[:2]
    chosen = torch.rand(count, cells, generator=draws).argsort(dim=1)[:, :kept].sort(dim=1).values
    return patches.gather(1, chosen.to(patches.device)[..., None].expand(-1, -1, patches.shape[2])), chosen


def collect(
    engine: Engine, crops: Crops, config: CacheConfig, file: Path, advance: Callable[[int], None]
) -> CachedPatches | FreshPatches:
    """Run the backbone over all crops once and keep patches of each as `config` says.

    Args:
        file: where a cache on disk goes. Only its space is used: it bears no name once it is mapped.
        advance: called with the number of crops of each batch.

    Raises:
        RasaError: features that are not finite or too large for fp16, or no room for a cache that was asked for.
    """
    passing = engine.batches(crops)
    first = next(passing)
    kept = config.kept(first.shape[1] * first.shape[2])
    shape = len(crops), kept, first.shape[3]
    place = config.place(2 * shape[0] * shape[1] * shape[2], file.parent)
    if place == "off":
        return FreshPatches(engine, crops, kept, first)
    store = _allocate(shape, file if place == "disk" else None)
    cells = torch.empty(shape[:2], dtype=torch.int32)
    done = 0
    for number, grids in enumerate(_chain(first, passing)):
        if grids.abs().max() > LARGEST_HALF:
            raise RasaError(
                f"{engine.backbone.name} gives features of up to {grids.abs().max().item():.3g}, too large to be kept "
                "in fp16: use solver=closed_form, or cache.where=off"
            )
        features, chosen = draw_patches(grids, kept, generator("rasa patches", 0, number))
        rows = slice(done, done + len(grids))
        store[rows], cells[rows] = features.half().cpu(), chosen.int()
        done += len(grids)
        advance(len(grids))
    return CachedPatches(store[:done], cells[:done], (first.shape[1], first.shape[2]), engine.device)


def _allocate(shape: tuple[int, int, int], file: Path | None) -> Tensor:
    if file is None:
        return torch.empty(shape, dtype=torch.float16)
    file.unlink(missing_ok=True)
    size = shape[0] * shape[1] * shape[2]
    store = torch.from_file(str(file), shared=True, size=size, dtype=torch.float16).view(shape)
    file.unlink()  # the map keeps it while the process lives, and nothing is left behind however that ends
    return store


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest
