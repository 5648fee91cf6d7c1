"""A run in its folder: started, continued or found there whole, and read while it goes on."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from franca.files import replace_text
from franca.metrics import read_metrics
from franca.reproduce.curve import SCORES, curve_of, window_of
from franca.reproduce.errors import ReproduceError
from franca.reproduce.machine import code_hash
from franca.reproduce.process import TrainingProcess
from franca.reproduce.recipe import Recipe
from franca.train.build import is_same_run
from franca.train.config import TrainConfig

RESULT = "reproduce.json"


@dataclass(frozen=True)
class FolderOfRun:
    """Where one seed of a recipe trains, and by which overrides."""

    recipe: Recipe
    overrides: list[str]  # seed and output among them
    config: TrainConfig

    @property
    def output(self) -> Path:
        """The folder."""
        return Path(self.config.output)

    def lines(self) -> list[dict[str, Any]]:
        """Of its metrics.jsonl so far."""
        return read_metrics(self.output / "metrics.jsonl")

    def curve(self) -> dict[str, dict[int, float | None]]:
        """What it has reached so far."""
        steps, every = self.config.steps, self.config.log.every
        return curve_of(self.lines(), steps, every, window_of(steps, every))

    @property
    def complete(self) -> bool:
        """Whether its last line is there, and its last scores where it is evaluated."""
        lines, config = self.lines(), self.config
        last_line = config.steps // config.log.every * config.log.every
        numbers = any(line["step"] == last_line and "images_per_second" in line for line in lines)
        scores = any(line["step"] == config.steps and any(k.startswith(SCORES) for k in line) for line in lines)
        return numbers and (scores or config.evaluation.every == 0)

    def require_same_code(self) -> None:
        """Raises ReproduceError, or ConfigError, when the folder holds a run that isn't this one."""
        if not is_same_run(self.config) or not (self.output / RESULT).is_file():
            return
        begun, here = _begun(self.output / RESULT), _here()
        changed = [
            f"{name} {begun.get(name)} there, {here[name]} here" for name in here if begun.get(name) != here[name]
        ]
        if changed:
            raise ReproduceError(
                f"{self.output} was begun with another state of things: {', '.join(changed)}. What it learned says "
                f"nothing about this one. Train anew: remove the folder (rm -r {shlex.quote(str(self.output))}), or "
                "give another output="
            )

    def train(self, enough: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Go on from wherever it stands, until ``enough``. Raises what :meth:`TrainingProcess.run` does."""
        noted = False

        def look() -> bool:
            nonlocal noted
            if not noted and (self.output / "config.yaml").is_file():
                if not (self.output / RESULT).is_file():
                    write_result(self.output, {})
                noted = True
            return enough()

        TrainingProcess(["--config", str(self.recipe.file), *self.overrides], say).run(look)


def write_result(output: Path, result: dict[str, Any]) -> None:
    """``reproduce.json``: with what the run was begun, and what is known of it. Raises OSError."""
    replace_text(output / RESULT, json.dumps({"begun_with": _here()} | result, indent=2) + "\n")


def _here() -> dict[str, str]:
    return {"torch": torch.__version__, "code": code_hash()}


def _begun(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())["begun_with"])
    except (ValueError, KeyError, TypeError):
        raise ReproduceError(f"{path} is damaged: remove the folder to train anew, or give another output=") from None
