"""The numbers of a study, gathered from what its tasks left, as one small JSON file and as differences with spread."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from franca.config import ConfigError
from franca.eval.result import read_results
from franca.files import replace_text
from franca.metrics import read_metrics
from studies.config import TRAINING, ColumnConfig, StudyConfig
from studies.plan import Task
from studies.running import results_file, told

FORMAT = 1
# two-sided 95 % points of Student's t by degrees of freedom; above them the normal distribution's
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
NORMAL = 1.96

PLACE: tuple[str, ...] = ("device", "precision", "torch", "commit")

Values = dict[str, float]  # slice -> value


@dataclass
class StudyResults:
    """values: rung -> column -> seed -> slice -> number. minutes: rung -> seed, of the training or the RASA run.

    digests: rung -> seed -> kind of a finished task -> its digest. places: where numbers were taken, device, precision,
    torch and commit, each once. Keys of seeds are text, as JSON has them.
    """

    values: dict[str, dict[str, dict[str, Values]]] = field(default_factory=dict)
    minutes: dict[str, dict[str, float]] = field(default_factory=dict)
    digests: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    places: list[dict[str, str]] = field(default_factory=list)

    def has(self, task: Task) -> bool:
        """Whether these are, or hold, the numbers of exactly this task."""
        return self.digests.get(task.rung, {}).get(str(task.seed), {}).get(task.kind) == task.digest

    def shown(self, rung: str, name: str, column: ColumnConfig) -> dict[str, float]:
        """Seed -> the number that the table shows, of the seeds that have it."""
        found = self.values.get(rung, {}).get(name, {})
        return {seed: by_slice[column.slice] for seed, by_slice in found.items() if column.slice in by_slice}

    def write(self, path: Path) -> None:
        """As JSON, a line for each rung's column."""
        content = {"format": FORMAT, **asdict(self)}
        replace_text(path, _short_lines(content) + "\n")


def read(path: Path) -> StudyResults:
    """What `StudyResults.write` wrote. Raises ConfigError."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return StudyResults(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of a study ({error!r})") from None


def gather(study: StudyConfig, tasks: Sequence[Task], recorded: StudyResults) -> StudyResults:
    """All that is there, in the folders of the tasks and, of the same tasks, in what was recorded before."""
    results = StudyResults()
    for task in tasks:
        seed = str(task.seed)
        if task.finished:
            about = told(task)
            places, minutes = [{name: about[name] for name in PLACE}], round(float(about["seconds"]) / 60, 1)
            found = {name: _values(task, column) for name, column in study.columns.items()}
        elif recorded.has(task):
            places, minutes = recorded.places, recorded.minutes.get(task.rung, {}).get(seed, 0.0)
            of_rung = recorded.values.get(task.rung, {})
            found = {
                name: of_rung.get(name, {}).get(seed, {})
                for name, column in study.columns.items()
                if column.score == (TRAINING if task.kind == "train" else task.kind)
            }
        else:
            continue
        results.places += [place for place in places if place not in results.places]
        results.digests.setdefault(task.rung, {}).setdefault(seed, {})[task.kind] = task.digest
        if task.kind in ("train", "rasa"):
            results.minutes.setdefault(task.rung, {})[seed] = minutes
        for name in (name for name, values in found.items() if values):
            results.values.setdefault(task.rung, {}).setdefault(name, {})[seed] = found[name]
    return results


def missing(tasks: Sequence[Task], asked: Sequence[Task], recorded: StudyResults) -> list[Task]:
    """Of all tasks those still to be run: what is asked for and has no recorded numbers, and what that needs."""
    wanted = {task for task in asked if not recorded.has(task)}
    queue = list(wanted)
    while queue:
        needs = set(queue.pop().needs) - wanted
        wanted |= needs
        queue += needs
    return [task for task in tasks if task in wanted]


def _values(task: Task, column: ColumnConfig) -> Values:
    """The column's number by slice, from what this task left; nothing where it is another's."""
    if task.kind == "train" and column.score == TRAINING:
        logged = [line[column.metric] for line in read_metrics(task.output / "metrics.jsonl") if column.metric in line]
        return {column.slice: round(float(logged[-1]), 5)} if logged else {}
    file = results_file(task) if task.kind == column.score else None
    if file is None:
        return {}
    wanted = column.settings.items()
    return {
        score["slice"]: round(score["value"], 5)
        for score in read_results(file)["scores"]
        if score["metric"] == column.metric and wanted <= score["settings"].items()
    }


@dataclass(frozen=True)
class Difference:
    """Between two rungs, seed by seed: mean and standard deviation, and whether chance alone would seldom do it."""

    mean: float
    spread: float | None
    count: int

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval of the mean (Student's t, seeds independent) leaves out 0; never of one seed."""
        if self.spread is None:
            return False
        factor = STUDENT.get(self.count - 1, NORMAL)
        return abs(self.mean) > factor * self.spread / math.sqrt(self.count)


def difference(these: Mapping[str, float], those: Mapping[str, float]) -> Difference | None:
    """Of the seeds that both have; None without any."""
    pairs = [value - those[seed] for seed, value in these.items() if seed in those]
    return Difference(statistics.mean(pairs), _spread(pairs), len(pairs)) if pairs else None


def mean_and_spread(values: Mapping[str, float]) -> tuple[float, float | None]:
    """Mean and standard deviation over the seeds, None for one."""
    return statistics.mean(values.values()), _spread(list(values.values()))


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _short_lines(content: Any, depth: int = 0) -> str:
    """JSON in which what lies three levels deep stands on one line."""
    if depth == 3 or not isinstance(content, dict) or not content:
        return json.dumps(content)
    pad = " " * (depth + 1)
    rows = [f"{pad}{json.dumps(key)}: {_short_lines(value, depth + 1)}" for key, value in content.items()]
    return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"
