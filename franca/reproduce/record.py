"""The record of a recipe: curves of some seeds, their tolerances, and what they were made with, as a JSON file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from franca.files import replace_text
from franca.reproduce.curve import Curve, places_of, steps_of
from franca.reproduce.errors import ReproduceError
from franca.reproduce.machine import FACTS
from franca.reproduce.tolerance import Tolerances
from franca.train.config import TrainConfig

FORMAT = 1
DIGITS = 5  # significant ones that a value keeps
LINE = r'\{\s*"step"[^{}]*\}|\[[^][{}]*\]'  # what stands on one line: a row of a curve, a list of an option

GIVEN, SPLIT, NONE = "folders of its own", "the training images, split in two", "nothing"


@dataclass(frozen=True)
class Record:
    """What is known of a recipe's runs.

    facts: FACTS, as `franca.reproduce.machine` puts them; "unknown" where the command didn't begin the runs.
    learned: the configuration that was run, without what is a user's own. evaluated: GIVEN, SPLIT or NONE.
    minutes: of one run's steps, on average. tolerance: where the tolerances come from, in words. Every seed has a value
    wherever there is a tolerance, and nowhere else.
    """

    recipe: str
    facts: dict[str, Any]
    minutes: float
    evaluated: str
    learned: dict[str, Any]
    tolerance: str
    tolerances: Tolerances
    seeds: dict[int, Curve]

    def mean(self, quantity: str, step: int) -> float:
        """Of the seeds, at a recorded step."""
        values = [curve[quantity][step] for curve in self.seeds.values()]
        return fmean(value for value in values if value is not None)

    def steps(self, quantity: str) -> list[int]:
        """At which a quantity is recorded."""
        return sorted(next(iter(self.seeds.values()))[quantity])


def evaluated_on(config: TrainConfig) -> str:
    """What a run's scores, if it has any, are of."""
    if config.evaluation.every == 0:
        return NONE
    return GIVEN if config.evaluation.train else SPLIT


def changed_since(record: Record, now: Mapping[str, Any]) -> list[str]:
    """Keys of ``learned`` that the recipe now sets otherwise; a key that is new counts as unchanged."""
    return [key for key, value in record.learned.items() if key not in now or now[key] != value]


def write_record(path: Path, record: Record) -> None:
    """Put the record in its place, whole, one row of a curve a line. Raises OSError."""
    content = {
        "format": FORMAT,
        "recipe": record.recipe,
        **record.facts,
        "minutes": _short(record.minutes),
        "evaluated": record.evaluated,
        "learned": record.learned,
        "tolerance": record.tolerance,
        "tolerances": _rows(record.tolerances),
        "seeds": {seed: _rows(curve) for seed, curve in record.seeds.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(LINE, lambda found: " ".join(found[0].split()), json.dumps(content, indent=2))
    replace_text(path, text + "\n")


def read_record(path: Path) -> Record:
    """Raises ReproduceError: there is no such file, it is no record that this version understands, or it is damaged."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ReproduceError(
                f"{path} has format {content['format']}, this version of franca reads {FORMAT}: use the version that "
                "wrote it, or record the recipe again"
            )
        record = Record(
            recipe=content["recipe"],
            facts={name: content[name] for name in FACTS},
            minutes=float(content["minutes"]),
            evaluated=content["evaluated"],
            learned=content["learned"],
            tolerance=content["tolerance"],
            tolerances=_curve(content["tolerances"]),
            seeds={int(seed): _curve(rows) for seed, rows in content["seeds"].items()},
        )
    except FileNotFoundError:
        raise ReproduceError(
            f"{path} does not exist: this recipe has no recorded curve. --record 0,1,2 makes one; without a name "
            "the command lists those that have"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ReproduceError):
            raise
        raise ReproduceError(f"{path} is no record of a recipe ({type(error).__name__}: {error}); restore it") from None
    if flaw := _flaw(record):
        raise ReproduceError(
            f"{path} is damaged: {flaw}. Restore it, or record the recipe again (--record 0,1,2 --force)"
        )
    return record


def _flaw(record: Record) -> str:
    """Why nothing can be compared with it; "" when it is whole."""
    if not record.seeds:
        return "it holds no seeds"
    if "loss" not in record.tolerances:
        return "it holds no tolerances of the loss"
    wanted = places_of(record.tolerances)
    for step, name in sorted(wanted):
        if not record.tolerances[name][step] > 0:
            return f"the tolerance of {name} at step {step} is {record.tolerances[name][step]:g}, not above 0"
    for seed, curve in record.seeds.items():
        if single := wanted ^ places_of(curve):
            step, name = min(single)
            return f"of seed {seed} and the tolerances, only one has {name} of step {step}"
    return ""


def _rows(curve: Curve) -> list[dict[str, float | None]]:
    return [
        {"step": step} | {name: _short(values[step]) for name, values in curve.items() if step in values}
        for step in steps_of(curve)
    ]


def _curve(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    curve: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                curve.setdefault(name, {})[int(row["step"])] = float(value)
    return curve


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
