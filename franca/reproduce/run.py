"""A run in its folder: started, continued or found there whole, and read while it goes on."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from franca.files import replace_text
from franca.metrics import read_metrics
from franca.reproduce.curve import SCORES, curve_of, window_of
from franca.reproduce.errors import ReproduceError
from franca.reproduce.machine import UNKNOWN, code_hash, facts_of
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

    @cached_property
    def begun_with(self) -> dict[str, Any]:
        """Code, images, torch and the like when the run began; UNKNOWN each in a folder that something else began.

        Raises:
            ReproduceError: the folder's notes are damaged.
            ConfigError: the folder holds a run that isn't this one.
        """
        here, notes = self._here, self.output / RESULT
        if not is_same_run(self.config):
            return here
        if not notes.is_file():
            return dict.fromkeys(here, UNKNOWN)
        try:
            begun = json.loads(notes.read_text())["begun_with"]
            return {name: begun[name] for name in here}
        except (ValueError, KeyError, TypeError):
            raise ReproduceError(
                f"{notes} is damaged: remove the folder to train anew, or give another output="
            ) from None

    @cached_property
    def _here(self) -> dict[str, Any]:
        return facts_of(self.config) | {"code": code_hash()}

    @property
    def made_elsewhere(self) -> bool:
        """Whether something else than this command began it, by whatever code and on whatever images."""
        return self.begun_with["code"] == UNKNOWN

    def require_same(self) -> None:
        """Raises ReproduceError when this command began the run with another state of things than there is now."""
        begun, here = self.begun_with, self._here
        changed = [
            f"{name} {begun[name]} there, {here[name]} here"
            for name in here
            if begun[name] != here[name] and name != "commit"  # which says less than the code itself
        ]
        if changed and not self.made_elsewhere:
            raise ReproduceError(
                f"{self.output} was begun with another state of things: {', '.join(changed)}. What it learned says "
                f"nothing about this one. Train anew: remove the folder (rm -r {shlex.quote(str(self.output))}), or "
                "give another output="
            )

    def note(self, result: dict[str, Any]) -> None:
        """Write ``reproduce.json``: with what the run was begun, and what is known of it. Raises OSError."""
        replace_text(self.output / RESULT, json.dumps({"begun_with": self.begun_with} | result, indent=2) + "\n")

    def train(self, enough: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Go on from wherever it stands, until ``enough``. Raises what :meth:`TrainingProcess.run` does."""
        noted = False

        def look() -> bool:
            nonlocal noted
            if not noted and (self.output / "config.yaml").is_file():
                if not (self.output / RESULT).is_file():
                    self.note({})
                noted = True
            return enough()

        TrainingProcess(["--config", str(self.recipe.file), *self.overrides], say).run(look)
