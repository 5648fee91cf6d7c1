"""Settings of in-context segmentation."""

from dataclasses import dataclass, field

CHOICES = {"void": ("ignore", "background", "first"), "absent": ("skip", "zero"), "search": ("exact", "quantised")}


@dataclass
class InContextConfig:
    """Settings of the paper.

    size: side of the square that images are resized to, in pixels; the model's patch must divide it.
    neighbours, temperature: who votes, and how sharply the nearest ones prevail.
    memory: most patches remembered, those of rare classes first; 0: all. augment: random crops and colours in memory.
    void: pixels of training masks that count nowhere vote for nothing (ignore), or for class 0 where this is named
    background, elsewhere for a class of their own, which is always wrong (background); or always for class 0 (first).
    absent: a class that is in no mask and no prediction is left out of the mean (skip), or is 0 in it (zero).
    hungarian: report miou_hungarian as well; it needs scipy.
    full_resolution: score on the masks as they are, not resized to size.
    search: exact, or quantised for tens of millions of patches (faiss; its recall is reported as neighbour_recall).
    probes: of the quantised search, parts of the memory that are looked into.
    seeds: of the memory, where it is random.
    """

    size: int = 518
    neighbours: int = 30
    temperature: float = 0.02
    memory: int = 0
    augment: bool = False
    void: str = "ignore"
    absent: str = "skip"
    hungarian: bool = True
    full_resolution: bool = False
    search: str = "exact"
    probes: int = 32
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])

    def __post_init__(self) -> None:
        for name in ("size", "neighbours", "probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be above 0")
        if self.memory < 0:
            raise ValueError(f"memory={self.memory}: give a number of patches, or 0 for all")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: name one or more different seeds")
