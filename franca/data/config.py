"""Where images come from and how they become batches, as a configuration."""

import multiprocessing
import os
from dataclasses import dataclass, field

from franca.data.errors import DataError
from franca.data.masking import MaskConfig
from franca.data.mixture import Mixture
from franca.data.multi_crop import CropConfig
from franca.data.sources import SOURCES, Source
from franca.data.sources.shards import ShardConfig, Shards
from franca.distributed import place

KINDS = (*SOURCES, "shards")


def cores_of_process() -> int:
    """Cores for each process of a run on this machine: those that it may use, shared with those that may use the same.

    srun can give each of its tasks cores of its own (--cpus-per-task); those that torchrun starts have them in common.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own_cores = "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if own_cores and os.environ.get("SLURM_CPUS_PER_TASK") == str(allowed):
        return allowed
    try:
        launched = place()
    except ValueError:  # who starts the run will say so
        launched = None
    return max(allowed // (launched.local_world_size if launched else 1), 1)


def spare_cores() -> int:
    """Worker processes by default: one core less than each process has, at most 8."""
    return min(cores_of_process() - 1, 8)


@dataclass
class PartConfig:
    """One source of a mixture.

    source: one of SOURCES, or "shards". path: as data.path. weight: its share of the samples is weight / sum of all;
    left out of all parts, each image of the mixture is shown equally often.
    """

    source: str = "folder"
    path: str = ""
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.source not in KINDS:
            raise ValueError(f"data.parts: source={self.source!r}: choose one of {', '.join(KINDS)}")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"data.parts: weight={self.weight} of {self.path!r}: choose a number above 0")


@dataclass
class DataConfig:
    """Where images come from and how they become batches.

    source: one of SOURCES, "shards", or "mixture". path: the folder; for "photographs" the split (train, test or all);
    for "shards" the files. parts: what a mixture is made of.
    channels: of the images, see decode.read_image. batch_size: images per micro-batch.
    workers: processes that decode and cut crops; 0 does it in the main process; by default one core less than there
    are, at most 8. prefetch: batches each worker keeps ready.
    start_method: how workers start: fork (quick, the choice of "auto" on Linux), spawn or forkserver (safe beside
    threads and some network libraries, some seconds slower).
    max_broken_share: share of unreadable files above which the run stops.
    """

    source: str = "folder"
    path: str = ""
    parts: list[PartConfig] = field(default_factory=list)
    channels: int = 3
    batch_size: int = 32
    workers: int = field(default_factory=spare_cores)
    prefetch: int = 2
    start_method: str = "auto"
    max_broken_share: float = 0.1
    shards: ShardConfig = field(default_factory=ShardConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        self._check_source()
        for name, least in (("channels", 1), ("batch_size", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)}: choose {least} or more")
        methods = ["auto", *multiprocessing.get_all_start_methods()]
        if self.start_method not in methods:
            raise ValueError(f"data.start_method={self.start_method!r}: choose one of {', '.join(methods)}")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share={self.max_broken_share}: choose a share from 0 to 1")
        if len(self.crops.mean) not in (1, self.channels):
            raise ValueError(
                f"data.crops.mean={self.crops.mean} has {len(self.crops.mean)} values, but data.channels="
                f"{self.channels}: give data.crops.mean and data.crops.std one value per channel"
            )

    def _check_source(self) -> None:
        kinds = (*KINDS, "mixture")
        if self.source not in kinds:
            raise ValueError(f"data.source={self.source!r}: choose one of {', '.join(kinds)}")
        if (self.source == "mixture") != bool(self.parts):
            raise ValueError(
                f"data.source={self.source!r} with {len(self.parts)} data.parts: a mixture needs them, and they need "
                "data.source=mixture; for example 'data.parts=[{source: folder, path: /a}, {source: tars, path: /b}]'"
            )
        weighted = [part.weight is not None for part in self.parts]
        if any(weighted) and not all(weighted):
            raise ValueError("data.parts: give every part a weight, or none")
        if self.parts and not all(weighted) and any(part.source == "shards" for part in self.parts):
            raise ValueError("data.parts: nobody has counted the images of shards: give every part a weight")

    def build_source(self) -> Source:
        """The images, for whom they need numbers. Raises DataError when there are none, or without numbers."""
        if self.source not in SOURCES:
            raise DataError(
                f"data.source={self.source!r} is for training alone, its images have no numbers: name one of "
                f"{', '.join(SOURCES)} with its data.path"
            )
        return SOURCES[self.source](self.path, self.channels)

    def build(self) -> Source | Shards | Mixture:
        """The images, for training. Raises DataError when there are none."""
        if self.source != "mixture":
            return self._build(self.source, self.path)
        parts = [self._build(part.source, part.path) for part in self.parts]
        weights = [
            len(built) if part.weight is None and not isinstance(built, Shards) else part.weight or 0.0
            for part, built in zip(self.parts, parts, strict=True)
        ]
        return Mixture(parts, weights)

    def _build(self, source: str, path: str) -> Source | Shards:
        if source == "shards":
            return Shards(path, self.channels, self.shards)
        return SOURCES[source](path, self.channels)
