"""The whole configuration of ``python -m rasa.train``: typed defaults <- YAML file <- ``key=value``."""

from dataclasses import dataclass, field

from franca.config import ConfigError
from rasa.backbones import BackboneConfig
from rasa.crops import CropsConfig
from rasa.patches import CacheConfig
from rasa.solvers import GradientConfig

SOLVERS = ("closed_form", "gradient")


@dataclass
class EvidenceConfig:
    """What is measured before and after, on full grids of patches.

    share: of the images, set apart: RASA never sees them, so that what is measured is no echo of its own fit. Half of
    them fit fresh predictors, half score them. crops: at most so many for each of the two; 0: no evidence. clusters: of
    k-means; 0: one for every 50 patches, 512 at most. pictures: images that PCA pictures show.
    """

    share: float = 0.1
    crops: int = 300
    clusters: int = 0
    pictures: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"evidence.share={self.share}: choose a share of the images, 0 or more and below 1")
        if self.crops < 0 or self.clusters < 0 or self.pictures < 1:
            raise ConfigError(
                f"evidence.crops={self.crops} and clusters={self.clusters} must not be negative, "
                f"pictures={self.pictures} at least 1"
            )


@dataclass
class RasaConfig:
    """A RASA run.

    solver: "closed_form" (ridge regression from sums over one pass) or "gradient" (the paper's). rounds: most planes to
    remove. saturation: stop when the held-out error is within this share of chance; 0: when it is chance. device,
    precision: as in franca.train.
    """

    output: str = "runs/rasa"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    solver: str = "closed_form"
    rounds: int = 8
    saturation: float = 0.01
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: CropsConfig = field(default_factory=CropsConfig)
    gradient: GradientConfig = field(default_factory=GradientConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver={self.solver!r}: choose one of {', '.join(SOLVERS)}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision={self.precision!r} must be auto, bf16 or fp32")
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} must be at least 1")
        if not 0 <= self.saturation < 1:
            raise ConfigError(f"saturation={self.saturation} must lie in [0, 1)")
