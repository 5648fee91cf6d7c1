"""What a study is made of, as its YAML file says it (configs/studies)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from franca.config import ConfigError, read_config
from measuring.facts import ROOT

TRAINING = "training"  # the score that a training logs itself
SHIPPED = ROOT / "configs/studies"
BETTER = {"higher": " →", "lower": " ←", "": ""}  # which numbers are, and the arrow that says so
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass
class RungConfig:
    """One variant: a row of the table.

    label: of the row. Exactly one of these makes its network:
    train: overrides of franca.train over those of the study. With ``after``, the training begins with that rung's
    teacher of the same seed.
    rasa: overrides of rasa.train; a RASA head for the network of ``after``.
    model: what `franca eval --model` takes; {after} stands for the teacher of ``after``.
    seeds: where they are not those of the study. scores: names of those to ask for; null: all.
    against: rungs whose seeds this one's are compared with, one by one.
    """

    label: str = ""
    train: list[str] | None = None
    rasa: list[str] | None = None
    model: str = ""
    after: str = ""
    seeds: list[int] | None = None
    scores: list[str] | None = None
    against: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.train is not None) + (self.rasa is not None) + bool(self.model) != 1:
            raise ConfigError(f"rung {self.label!r}: give one of train, rasa and model")


@dataclass
class ColumnConfig:
    """One number of each run: a column of the table.

    score: key of ``scores``, or "training" for what the run logged last. metric: its name there. settings: those that
    tell it from the score's other numbers. slice: which one the table shows; curves show all. digits: after the point.
    better: higher, lower, or "" for neither.
    """

    label: str
    score: str
    metric: str
    settings: dict[str, Any] = field(default_factory=dict)
    slice: str = "d"
    digits: int = 1
    better: str = "higher"

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            raise ConfigError(
                f"column {self.label!r}: better={self.better!r}; give one of {', '.join(map(repr, BETTER))}"
            )

    @property
    def title(self) -> str:
        """Its label, with the slice where that is not the whole feature."""
        return self.label if self.slice == "d" else f"{self.label}, {self.slice}"


@dataclass
class CurveConfig:
    """One column over the slices of the feature: a panel with a line for each rung, and a table with a row for each."""

    title: str
    column: str
    rungs: list[str]


@dataclass
class StudyConfig:
    """Rungs x seeds, each trained or made otherwise, and scored.

    title: of the report. config: YAML file of franca.train that all trainings share, seen from the project's folder.
    train, rasa: overrides that all trainings, and all RASA runs, share. seeds: of every rung. scores: name ->
    arguments of `franca eval`, without model and output. columns, curves: of the report.
    In overrides and scores {NAME} stands for a folder that `--data NAME=FOLDER` names.
    """

    title: str = ""
    config: str = ""
    train: list[str] = field(default_factory=list)
    rasa_config: str = "configs/rasa/images.yaml"
    rasa: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    rungs: dict[str, RungConfig] = field(default_factory=dict)
    scores: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, ColumnConfig] = field(default_factory=dict)
    curves: list[CurveConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in [*self.rungs, *self.scores, *self.columns]:
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name!r}: names of rungs, scores and columns are of a-z, 0-9 and _")
        self._check_seeds("seeds", self.seeds)
        for name, rung in self.rungs.items():
            self._check_seeds(f"rungs.{name}.seeds", self.seeds_of(name))
            earlier = list(self.rungs)[: list(self.rungs).index(name)]
            self._check_names(f"rungs.{name}.after", [rung.after] if rung.after else [], earlier)
            self._check_names(f"rungs.{name}.against", rung.against, [other for other in self.rungs if other != name])
            self._check_names(f"rungs.{name}.scores", rung.scores or [], list(self.scores))
            if rung.rasa is not None and not rung.after:
                raise ConfigError(f"rungs.{name}: rasa needs after, the rung whose network it changes")
        for name, column in self.columns.items():
            self._check_names(f"columns.{name}.score", [column.score], [TRAINING, *self.scores])
        for curve in self.curves:
            self._check_names(f"curve {curve.title!r}", [curve.column], list(self.columns))
            self._check_names(f"curve {curve.title!r}", curve.rungs, list(self.rungs))

    @staticmethod
    def _check_seeds(key: str, seeds: list[int]) -> None:
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ConfigError(f"{key}={seeds}: give one or more whole numbers from 0, each once")

    @staticmethod
    def _check_names(key: str, given: list[str], known: list[str]) -> None:
        for name in given:
            if name not in known:
                raise ConfigError(f"{key}: no {name!r} there; choose of {', '.join(known) or 'none'}")
            if given.count(name) > 1:
                raise ConfigError(f"{key}: {name!r} stands there twice")

    def texts(self) -> Iterator[str]:
        """All overrides and arguments of scores, in which {NAME} may stand."""
        of_rungs = [texts for rung in self.rungs.values() for texts in (rung.train, rung.rasa) if texts is not None]
        yield from chain(self.train, self.rasa, *self.scores.values(), *of_rungs)

    def seeds_of(self, rung: str) -> list[int]:
        """The rung's own, else the study's."""
        own = self.rungs[rung].seeds
        return self.seeds if own is None else own

    def scores_of(self, rung: str) -> list[str]:
        """Which scores a rung is asked for."""
        own = self.rungs[rung].scores
        return list(self.scores) if own is None else own

    def asks(self, rung: str, score: str) -> bool:
        """Whether a rung has a score; that of the training has whatever is trained."""
        return self.rungs[rung].train is not None if score == TRAINING else score in self.scores_of(rung)


def read_study(file: Path, overrides: list[str]) -> StudyConfig:
    """A study's file with ``key=value`` over it. Raises ConfigError."""
    if not file.is_file():
        shipped = ", ".join(f"configs/studies/{path.name}" for path in sorted(SHIPPED.glob("*.yaml")))
        raise ConfigError(f"study {file} is no file; shipped are {shipped}")
    study = read_config(StudyConfig, file, overrides)
    if not study.rungs:
        raise ConfigError(f"{file} has no rungs")
    return study
