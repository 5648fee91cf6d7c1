"""Advice for a run whose devices wait for images: said once, when waiting lasts."""

import torch

from franca.data.config import DataConfig, cores_of_process

SHARE = 0.2  # of the time, from which on waiting matters
LINES = 3  # logged lines in a row that must show it,
SECONDS = 30.0  # and the training time that they must cover: workers take some seconds to start
# What would make images come faster, by data.source.
FASTER = {"shards": "keep the shards on a faster or local disk"}
FASTER_FILES = "keep them on a faster or local disk, or pack them into shards"


class DataAdvice:
    """Watches the share of waiting, and knows what could be changed.

    cores: of one process. busy: of those, how many the training itself keeps busy.
    """

    def __init__(self, config: DataConfig, cores: int, busy: int) -> None:
        self.config = config
        self.cores = cores
        self.room = max(cores - busy, 1)  # for workers
        self._given = False
        self._lines, self._seconds = 0, 0.0

    @classmethod
    def for_device(cls, config: DataConfig, device: torch.device) -> "DataAdvice":
        """On this machine: one thread feeds an accelerator, a CPU trains with torch's own."""
        return cls(config, cores_of_process(), torch.get_num_threads() if device.type == "cpu" else 1)

    def heed(self, data_wait: float, seconds: float) -> str:
        """Take in a logged line, which covers so many seconds; returns the advice when it is due, else ""."""
        waits = data_wait >= SHARE
        self._lines, self._seconds = (self._lines + 1, self._seconds + seconds) if waits else (0, 0.0)
        if self._given or self._lines < LINES or self._seconds < SECONDS:
            return ""
        self._given = True
        return f"WARNING: {data_wait:.0%} of the time is spent waiting for data. {self.sentence()}"

    def sentence(self) -> str:
        """What to change, from workers and cores, or else from where the images lie."""
        workers, cores = self.config.workers, f"{self.cores} core{'s' * (self.cores > 1)}"
        if workers == 0:
            return f"data.workers=0 prepares images between the steps: set data.workers={self.room}"
        if workers < self.room:
            return f"Set data.workers={self.room}: it is {workers}, and each process has {cores}"
        if workers > self.cores:
            return f"data.workers={workers} on {cores} for each process are in each other's way: set {self.room}"
        return (
            f"More workers would not help: data.workers={workers}, and each process has {cores}. If top shows that the "
            "workers are busy, store the images smaller, for decoding costs most, or give each process more cores; if "
            f"they are idle, images come too slowly: {FASTER.get(self.config.source, FASTER_FILES)}"
        )
