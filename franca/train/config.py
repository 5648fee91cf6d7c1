"""The whole configuration of a pretraining run: typed defaults <- YAML file <- ``key=value`` on the command line."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from franca.config import ConfigError, read_config
from franca.data.loader import DataConfig
from franca.models import BACKBONES
from franca.objective import ObjectiveConfig
from franca.train.checkpoint import CheckpointConfig
from franca.train.logger import LogConfig
from franca.train.monitor import MonitorConfig
from franca.train.optimizer import OptimizerConfig
from franca.train.parallel import ParallelConfig
from franca.train.recovery import RecoveryConfig
from franca.train.schedules import Schedules, TeacherConfig


@dataclass
class ModelConfig:
    """The backbone. ``None`` keeps what the named architecture says."""

    arch: str = "vit_base"
    patch_size: int = 14
    img_size: int | None = None  # pixels; side of the stored position grid. None: data.crops.global_size
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    ffn: str = "swiglu"  # swiglu | mlp
    init_values: float = 1e-5  # LayerScale at the start; short runs want 1.0 (training.md)
    num_register_tokens: int = 0
    drop_path_rate: float = 0.0
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False

    def __post_init__(self) -> None:
        if self.arch not in BACKBONES:
            raise ConfigError(f"model.arch={self.arch!r} is unknown; choose one of {', '.join(BACKBONES)}")
        if self.patch_size < 1:
            raise ConfigError(f"model.patch_size={self.patch_size} must be at least 1 pixel")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ConfigError(f"model.drop_path_rate={self.drop_path_rate} must lie in [0, 1)")

    def backbone_options(self) -> dict[str, Any]:
        """Keyword arguments for the builder ``BACKBONES[arch]``, without ``img_size`` and ``in_chans``."""
        return {k: v for k, v in asdict(self).items() if v is not None and k not in ("arch", "img_size")}


@dataclass
class HeadConfig:
    """One Matryoshka head: its prototypes and the width they live in."""

    prototypes: Any = 131072  # widest level's count (narrower levels get their share), or a list: one count per level
    bottleneck_dim: int = 256

    def __post_init__(self) -> None:
        counts = self.prototypes if isinstance(self.prototypes, list) else [self.prototypes]
        if not all(isinstance(count, int) and count > 1 for count in counts):
            raise ConfigError(f"heads.*.prototypes={self.prototypes!r} must be a count above 1, or a list of them")


@dataclass
class HeadsConfig:
    """What both Matryoshka heads share, and each one's own part (paper Sec. 2.1)."""

    nesting: list[float] = field(default_factory=lambda: [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0])  # [1.0] is DINOv2
    hidden_dim: int = 2048
    layers: int = 3
    normalize_bottleneck: bool = True  # False: the released models' form (GELU after the bottleneck, no L2)
    dino: HeadConfig = field(default_factory=lambda: HeadConfig(bottleneck_dim=384))  # class tokens
    ibot: HeadConfig = field(default_factory=lambda: HeadConfig(bottleneck_dim=256))  # masked patches

    def head_options(self, head: HeadConfig) -> dict[str, Any]:
        """Keyword arguments for ``MatryoshkaHead``, without ``in_dim``."""
        shared = {k: v for k, v in asdict(self).items() if k not in ("dino", "ibot")}
        return shared | asdict(head)


@dataclass
class EvaluationConfig:
    """Online k-NN of the teacher, run when images carry labels (class folders). Scores are percentages."""

    every: int = 0  # steps between evaluations; 0: never. The end of the run is always evaluated when every > 0
    train: str = ""  # labelled folder of the memory; empty: the training folder, split in two
    test: str = ""  # labelled folder of the queries
    image_size: int = 224  # pixels
    ks: list[int] = field(default_factory=lambda: [20])
    max_images: int = 0  # per set, evenly spaced over the folder; 0: all

    def __post_init__(self) -> None:
        if bool(self.train) != bool(self.test):
            raise ConfigError(
                f"evaluation.train={self.train!r} and evaluation.test={self.test!r}: set both (two folders with the "
                "same classes) or neither (the training folder is split in two)"
            )
        for name, least in (("every", 0), ("image_size", 1), ("max_images", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluation.{name}={getattr(self, name)} must be at least {least}")
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"evaluation.ks={self.ks} must hold at least one number of neighbours above 0")


@dataclass
class TrainConfig:
    """A pretraining run. Every key can be set in the YAML file or as ``key=value`` on the command line."""

    output: str = "runs/pretrain"
    seed: int = 0
    steps: int = 625_000  # optimizer steps
    accumulate: int = 1  # micro-batches per step; Sinkhorn runs over all of them together
    world_size: int = 0  # processes that the run needs; 0: as many as torchrun or SLURM started
    device: str = "auto"  # auto, or any torch device: cpu, cuda, mps
    precision: str = "auto"  # auto (bf16 where the device has it) | bf16 | fp32
    init_from: str = ""  # weights that both networks begin with: a file, a folder, or such as franca_vitb14@IN21K_224
    init_heads: str = "new"  # new | loaded, from the same file
    model: ModelConfig = field(default_factory=ModelConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.world_size < 0:
            raise ConfigError(f"world_size={self.world_size} must not be negative; 0 takes as many as there are")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} must lie in [0, 2**32)")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision={self.precision!r} must be auto, bf16 or fp32")
        if self.init_heads not in ("new", "loaded"):
            raise ConfigError(f"init_heads={self.init_heads!r} must be new or loaded")
        if self.init_heads == "loaded" and not self.init_from:
            raise ConfigError("init_heads=loaded, but init_from names no file that holds heads")
        for name, size in self._image_sides().items():
            if size % self.model.patch_size:
                nearest = max(round(size / self.model.patch_size), 1) * self.model.patch_size
                raise ConfigError(
                    f"{name}={size} is no multiple of model.patch_size={self.model.patch_size}; try {nearest}"
                )
        self._check_phases()

    def _check_phases(self) -> None:
        """Heads alone, warm-up and the rest must find room in the run."""
        frozen, warmup = self.optimizer.freeze_backbone_steps, self.optimizer.warmup_steps
        if frozen and not self.init_from:
            raise ConfigError(
                f"optimizer.freeze_backbone_steps={frozen}, but init_from names no file: a random backbone must learn"
            )
        if frozen >= self.steps:
            raise ConfigError(
                f"optimizer.freeze_backbone_steps={frozen} must be below steps={self.steps}: the backbone would learn "
                "nothing"
            )
        if frozen + warmup >= self.steps:
            together = f"optimizer.freeze_backbone_steps={frozen} + " if frozen else ""
            raise ConfigError(
                f"{together}optimizer.warmup_steps={warmup} must be below steps={self.steps}: shorten the warm-up with "
                "the run"
            )

    def _image_sides(self) -> dict[str, int]:
        """Key and value of every image side, in pixels, that the network will see."""
        crops = self.data.crops
        sides = {"data.crops.global_size": crops.global_size}
        if crops.local_count:
            sides["data.crops.local_size"] = crops.local_size
        if self.evaluation.every:
            sides["evaluation.image_size"] = self.evaluation.image_size
        return sides

    def schedules(self) -> Schedules:
        """All schedules of the run; but for that of heads alone they share the steps after the thaw."""
        steps = self.steps - self.optimizer.freeze_backbone_steps
        return Schedules(
            heads_alone=self.optimizer.heads_alone_schedule(self.effective_batch),
            lr=self.optimizer.lr_schedule(steps, self.effective_batch),
            freeze_last_layer=self.optimizer.freeze_last_layer_steps,
            weight_decay=self.optimizer.weight_decay_schedule(steps),
            teacher_momentum=self.teacher.momentum_schedule(steps),
            teacher_temperature=self.teacher.temperature_schedule(),
        )

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step, over all processes; of one process while their number is open."""
        return self.data.batch_size * self.accumulate * max(self.world_size, 1)

    def for_ranks(self, ranks: int) -> "TrainConfig":
        """The same run on ``ranks`` processes. Raises ConfigError when it asks for another number."""
        if self.world_size not in (0, ranks):
            raise ConfigError(
                f"world_size={self.world_size}, but the number of processes started is {ranks}: start that many "
                f"(torchrun --nproc-per-node {self.world_size} -m franca.train …), or set world_size=0"
            )
        return replace(self, world_size=ranks)


def load_config(file: str | Path | None = None, overrides: list[str] | None = None) -> TrainConfig:
    """Read ``file`` (YAML) over the defaults above, then ``overrides`` (``key=value``). Raises ConfigError."""
    return read_config(TrainConfig, file, overrides)
