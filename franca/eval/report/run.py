"""A finished or interrupted pretraining run, read from its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from franca.data.loader import DataConfig
from franca.data.sources import Source
from franca.hub import describe, load_model
from franca.metrics import read_metrics
from franca.models import VisionTransformer


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    folder: Path
    description: dict[str, Any]  # of the teacher file
    settings: Mapping[str, Any]  # config.yaml
    data: DataConfig
    source: Source  # the images it was trained on
    lines: list[dict[str, Any]]  # metrics.jsonl
    trained: VisionTransformer  # teacher, eval mode
    untrained: VisionTransformer  # the same network as it was before the first step, eval mode

    @property
    def verdict(self) -> tuple[str, str]:
        """The monitor's last verdict and its reason."""
        for line in reversed(self.lines):
            if "verdict" in line:
                return line["verdict"], line.get("verdict_reason", "")
        return "too early to say", "the monitor took no reading"

    @property
    def batch(self) -> int:
        """Images per optimizer step."""
        return int(self.data.batch_size * self.settings.get("accumulate", 1))

    @property
    def trained_widths(self) -> list[int]:
        """Slice widths that had a head in training, narrowest first."""
        nesting = self.description["heads"]["dino_head"]["nesting"]
        return [round(self.trained.embed_dim * fraction) for fraction in nesting]

    @property
    def prototypes(self) -> dict[str, list[int]]:
        """Head -> prototypes per level."""
        return {name: head["prototypes"] for name, head in self.description["heads"].items()}

    @property
    def training_seconds(self) -> float:
        """Time spent on the logged steps, evaluation and saving left out."""
        return sum(seconds for seconds, _ in self._spent())

    @property
    def data_wait(self) -> float:
        """Share of that time spent waiting for images."""
        return sum(seconds * share for seconds, share in self._spent()) / max(self.training_seconds, 1e-9)

    @property
    def skipped_files(self) -> int:
        """Unreadable files met in training."""
        return int(max((line.get("skipped_files", 0) for line in self.lines), default=0))

    def _spent(self) -> list[tuple[float, float]]:
        """Seconds and share of waiting between logged lines."""
        logged = [line for line in self.lines if line.get("images_per_second")]
        before = [0] + [line["images"] for line in logged]
        return [
            ((line["images"] - images) / line["images_per_second"], line["data_wait"])
            for images, line in zip(before, logged, strict=False)
        ]


def load_run(folder: str | Path) -> Run:
    """Read a run folder of ``franca.train``.

    Raises:
        FileNotFoundError: the folder lacks the configuration or the teacher.
        DataError, CheckpointError: the images or the teacher can't be read.
    """
    folder = Path(folder)
    for name in ("config.yaml", "teacher.pth"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: no run folder, or the run saved nothing yet")
    settings = OmegaConf.load(folder / "config.yaml")
    assert isinstance(settings, DictConfig)
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), settings.data))
    assert isinstance(data, DataConfig)
    trained = load_model(checkpoint=folder / "teacher.pth")
    return Run(
        folder=folder,
        description=describe(folder / "teacher.pth"),
        settings=settings,
        data=data,
        source=data.build_source(),
        lines=read_metrics(folder / "metrics.jsonl"),
        trained=trained,
        untrained=build_untrained(trained.config, settings.seed),
    )


def build_untrained(config: Mapping[str, Any], seed: int) -> VisionTransformer:
    """The backbone as the trainer initialised it; the random state is left as it was.

    The trainer seeds with ``seed`` and builds the backbone first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(**config).eval()
