"""The configuration made into objects: device, precision, networks, run folder."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from franca.config import ConfigError, dump_config
from franca.data.mixture import Mixture
from franca.data.sources import Source
from franca.data.sources.shards import Shards
from franca.files import held, replace_text
from franca.models import BACKBONES, MatryoshkaHead, VisionTransformer
from franca.objective import Encoder, StudentTeacher
from franca.train.config import TrainConfig, load_config

# Keys, and groups of keys, that may differ when a run is continued: they don't change what is learned.
OPERATIONAL = (
    *("output", "device", "data.workers", "data.prefetch", "data.start_method", "data.max_broken_share"),
    *("checkpoint", "evaluation", "monitor", "recovery", "parallel", "log"),
)
# Their product, the effective batch, is what counts.
BATCH = ("data.batch_size", "accumulate", "world_size")


def build_backbone(config: TrainConfig, drop_path_rate: float) -> VisionTransformer:
    """The configured backbone with freshly initialised weights."""
    options = config.model.backbone_options() | {"drop_path_rate": drop_path_rate}
    size = config.model.img_size or config.data.crops.global_size
    return BACKBONES[config.model.arch](img_size=size, in_chans=config.data.channels, **options)


def build_encoder(config: TrainConfig, drop_path_rate: float) -> Encoder:
    """Backbone and both Matryoshka heads."""
    backbone = build_backbone(config, drop_path_rate)
    dino = MatryoshkaHead(backbone.embed_dim, **config.heads.head_options(config.heads.dino))
    ibot = MatryoshkaHead(backbone.embed_dim, **config.heads.head_options(config.heads.ibot))
    return Encoder(backbone, dino, ibot)


def build_pair(config: TrainConfig) -> StudentTeacher:
    """Student and teacher with the same weights, a function of the seed; stochastic depth in the student only.

    Raises:
        ConfigError: ``model`` and ``heads`` make no network, for example levels of no whole number of features.
    """
    torch.manual_seed(config.seed)
    with refused_as("model, heads"):
        return StudentTeacher(build_encoder(config, config.model.drop_path_rate), build_encoder(config, 0.0))


def build_source(config: TrainConfig) -> Source | Shards | Mixture:
    """The images. Raises DataError when there are none, ConfigError when ``data`` describes none."""
    with refused_as("data"):
        return config.data.build()


class FolderInUse(ConfigError):
    """Another process is training there."""


@contextmanager
def refused_as(part: str) -> Iterator[None]:
    """A value that a component refuses becomes an error of the configuration's ``part``."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{part}: {error}") from error


def describe_teacher(
    config: TrainConfig, pair: StudentTeacher, step: int, images: int, beginning: Mapping[str, Any]
) -> dict[str, Any]:
    """What a teacher file says of itself (plain types). beginning: the facts of `franca.train.initialise`."""
    teacher = pair.teacher
    return {
        "arch": config.model.arch,
        "backbone": teacher.backbone.config,
        "heads": {"dino_head": teacher.dino_head.config, "ibot_head": teacher.ibot_head.config},
        **beginning,
        "step": step,
        "images_seen": images,
        "data": config.data.path or config.data.source,
        "mean": list(config.data.crops.mean),
        "std": list(config.data.crops.std),
        "python": platform.python_version(),
    }


def claim_run_folder(config: TrainConfig) -> Path:
    """Make the output folder, or accept it when it belongs to the same run.

    Raises:
        ConfigError: the folder holds something else, or a run whose configuration differs where it matters.
    """
    output = Path(config.output)
    recorded = output / "config.yaml"
    if (
        not is_same_run(config)
        and output.is_dir()
        and any(not path.name.endswith(".partial") for path in output.iterdir())
    ):
        raise ConfigError(
            f"output={config.output!r} holds files that no run of franca.train made; choose an empty or new folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        replace_text(recorded, dump_config(config))
    except OSError as error:
        raise ConfigError(f"output={config.output!r} can't be written: {error}") from None
    return output


def is_same_run(config: TrainConfig) -> bool:
    """Whether the output folder already belongs to this run. Raises ConfigError when it belongs to another one."""
    recorded = Path(config.output) / "config.yaml"
    if recorded.is_file():
        _require_same_run(config, recorded)
    return recorded.is_file()


@contextmanager
def sole_owner(config: TrainConfig, output: Path) -> Iterator[None]:
    """Hold the output folder against a second process. Raises ConfigError when another one is training there."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(output))
        except BlockingIOError:
            raise FolderInUse(
                f"output={config.output!r} is in use: another process is training there; wait until it has ended, or "
                "choose another folder"
            ) from None
        yield


def _require_same_run(config: TrainConfig, recorded: Path) -> None:
    earlier = load_config(recorded)
    old, new = (
        {key: value for key, value in flatten(run).items() if key not in BATCH}
        | {"effective batch": run.effective_batch}
        for run in (earlier, config)
    )
    differing = [key for key in new if old.get(key) != new[key] and not _is_operational(key)]
    if differing:
        rows = "\n".join(f"  {key}: there {old.get(key)!r}, here {new[key]!r}" for key in differing)
        raise ConfigError(
            f"output={config.output!r} belongs to another run, whose configuration differs in\n{rows}\n"
            "choose another output folder, or the configuration of that run to continue it"
        )


def _is_operational(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in OPERATIONAL)


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Configuration as {dotted key: value}; lists count as values."""
    flat: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                visit(value, f"{name}.")
            else:
                flat[name] = value

    visit(OmegaConf.to_container(OmegaConf.structured(config)), "")
    return flat
