"""The numbers of a study, gathered from what its tasks left, as one small JSON file and as differences with spread."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from franca.config import ConfigError
from franca.eval.errors import EvalError
from franca.eval.result import read_results
from franca.files import replace_text
from franca.metrics import read_metrics
from studies.config import TRAINING, ColumnConfig, CurveConfig, StudyConfig
from studies.plan import Identity, Task, with_needs
from studies.running import results_file, told

FORMAT = 1
# two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; above them nearly the normal distribution's
STUDENT = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13),
    *(2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04),
)
NORMAL = 1.96
MADE = ("train", "rasa")  # kinds of tasks that make a rung's network
NO_PLACE = ("seconds", "command")  # what is kept of a finished task beside where it ran

Values = dict[str, float]  # slice -> value
Lines = dict[str, dict[str, dict[int, float]]]  # rung -> slice -> seed -> value


@dataclass(frozen=True)
class Entry:
    """What one finished task found. place: number of where it ran. values: column -> slice -> number."""

    rung: str
    seed: int
    kind: str
    digest: str
    place: int
    minutes: float
    values: dict[str, Values]

    @property
    def identity(self) -> Identity:
        """Of the task."""
        return Identity(self.rung, self.seed, self.kind, self.digest)


@dataclass
class StudyResults:
    """Entries of finished tasks, where they ran (device, precision, torch, commit and data), and which tasks failed."""

    entries: list[Entry] = field(default_factory=list)
    places: list[dict[str, str]] = field(default_factory=list)
    failed: list[Identity] = field(default_factory=list)

    def has(self, task: Task) -> bool:
        """Whether it holds the numbers of exactly this task."""
        return any(entry.identity == task.identity for entry in self.entries)

    def of(self, tasks: Sequence[Task]) -> "StudyResults":
        """The entries of exactly these tasks; others are of another version of the study, or of seeds that it left."""
        planned = {task.identity for task in tasks}
        kept = [entry for entry in self.entries if entry.identity in planned]
        places = sorted({entry.place for entry in kept})
        numbers = {place: number for number, place in enumerate(places)}
        return StudyResults(
            [replace(entry, place=numbers[entry.place]) for entry in kept],
            [self.places[place] for place in places],
            [task for task in self.failed if task in planned],
        )

    def by_slice(self, rung: str, column: str) -> dict[int, Values]:
        """Seed -> slice -> number."""
        return {
            entry.seed: entry.values[column] for entry in self.entries if entry.rung == rung and column in entry.values
        }

    def shown(self, rung: str, name: str, column: ColumnConfig) -> dict[int, float]:
        """Seed -> the number that the table shows, of the seeds that have it."""
        found = self.by_slice(rung, name)
        return {seed: values[column.slice] for seed, values in found.items() if column.slice in values}

    def lines(self, curve: CurveConfig) -> Lines:
        """Those rungs of a curve that have two slices or more."""
        lines: Lines = {}
        for name in curve.rungs:
            by_slice: dict[str, dict[int, float]] = {}
            for seed, values in self.by_slice(name, curve.column).items():
                for slice_, value in values.items():
                    by_slice.setdefault(slice_, {})[seed] = value
            if len(by_slice) > 1:
                lines[name] = by_slice
        return lines

    def ran(self, rung: str, score: str) -> bool:
        """Whether a task has finished that could have given such a number."""
        return any(entry.rung == rung and entry.kind == kind_of(score) for entry in self.entries)

    def failed_seeds(self, rung: str, score: str | None = None) -> set[int]:
        """Seeds of which a task of the rung failed; with ``score``: one that its numbers need."""
        return {task.seed for task in self.failed if task.rung == rung and (not score or task.kind in (*MADE, score))}

    def minutes(self, rung: str) -> list[float]:
        """Of each training, or RASA run."""
        return [entry.minutes for entry in self.entries if entry.rung == rung and entry.kind in MADE]

    def write(self, path: Path) -> None:
        """As JSON, a line for each entry; what failed only where something did."""
        lines: dict[str, list[dict[str, Any]]] = {"entries": list(map(asdict, self.entries)), "places": self.places}
        if self.failed:
            lines["failed"] = [task._asdict() for task in self.failed]
        parts = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]" for name, rows in lines.items()]
        replace_text(path, f'{{\n "format": {FORMAT},\n' + ",\n".join(parts) + "\n}\n")


def read(path: Path) -> StudyResults:
    """What `StudyResults.write` wrote. Raises ConfigError."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        failed = [Identity(**task) for task in content.get("failed", [])]
        return StudyResults([Entry(**entry) for entry in content["entries"]], content["places"], failed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results of a study ({error!r})") from None


def gather(study: StudyConfig, tasks: Sequence[Task], recorded: StudyResults) -> StudyResults:
    """What was recorded before, renewed by what lies in the folders of the tasks.

    Raises EvalError where a finished score left no results.
    """
    found = {entry.identity.question: entry for entry in recorded.entries}
    failed = {task.question: task for task in recorded.failed}
    places = list(recorded.places)
    for task in (task for task in tasks if task.folder.exists()):  # begun here: what became of it is known
        failed.pop(task.identity.question, None)
        if task.failed:
            failed[task.identity.question] = task.identity
    for task in (task for task in tasks if task.finished):
        about = told(task)
        place = {name: value for name, value in about.items() if name not in NO_PLACE}
        places += [place] if place not in places else []
        values = {name: _values(task, column) for name, column in study.columns.items()}
        entry = Entry(
            *task.identity,
            places.index(place),
            round(float(about["seconds"]) / 60, 1),
            {name: numbers for name, numbers in values.items() if numbers},
        )
        found[task.identity.question] = entry
    order = {task.identity.question: number for number, task in enumerate(tasks)}

    def place_of(one: Identity) -> int:
        return order.get(one.question, len(order))

    entries = sorted(found.values(), key=lambda entry: place_of(entry.identity))
    done = {entry.identity for entry in entries}
    return StudyResults(entries, places, sorted((task for task in failed.values() if task not in done), key=place_of))


def require_same_data(tasks: Sequence[Task], recorded: StudyResults, data: Mapping[str, str]) -> None:
    """Raises ConfigError where numbers of these tasks are there already and are of other data.

    data: name -> what is in the folder now, as it is kept with each task.
    """
    here = [(task.folder.parent, told(task)) for task in tasks if task.finished]
    for origin, place in [*here, *(("--results", place) for place in recorded.of(tasks).places)]:
        for name, now in data.items():
            if place.get(name, now) != now:
                raise ConfigError(
                    f"--data {name}: this folder has {now}, but what {origin} holds is of {place[name]}; numbers "
                    "of both can't stand in one table: give the other images, or a FOLDER and --results of their own"
                )


def not_found(study: StudyConfig, tasks: Sequence[Task], results: StudyResults) -> list[str]:
    """Columns that ask for a number which no finished task has, in words, with those that there are."""
    said = []
    for name, column in study.columns.items():
        kind = kind_of(column.score)
        finished = [entry for entry in results.entries if entry.kind == kind]
        if finished and not any(column.slice in entry.values.get(name, {}) for entry in finished):
            asked = " ".join(
                [column.metric, *(f"{key}={value}" for key, value in column.settings.items()), column.slice]
            )
            there = next((_there(task) for task in tasks if task.finished and task.kind == kind), None)
            advice = (
                "it was recorded without, and its folder is not here: leave out --results, or remove its entries there"
                if there is None
                else f"there are {', '.join(there)}"
                if there
                else "it has none"
            )
            said.append(f"columns.{name}: no {asked} in what {column.score} gave; {advice}")
    return said


def _there(task: Task) -> list[str]:
    """Numbers that a finished task has, with the settings and slices that tell them apart."""
    if task.kind == "train":
        return sorted({name for line in read_metrics(task.output / "metrics.jsonl") for name in line})
    slices: dict[str, list[str]] = {}
    for score in _scores(task):
        settings = (f"{key}={value}" for key, value in score["settings"].items())
        slices.setdefault(" ".join([score["metric"], *settings]), []).append(score["slice"])
    return [f"{name} {', '.join(dict.fromkeys(given))}" for name, given in slices.items()]


def missing(tasks: Sequence[Task], asked: Sequence[Task], recorded: StudyResults) -> list[Task]:
    """Of all tasks those still to be run: what is asked for and has no recorded numbers, and what that needs."""
    wanted = with_needs(task for task in asked if not (task.finished or recorded.has(task)))
    return [task for task in tasks if task in wanted and not task.finished]


def _values(task: Task, column: ColumnConfig) -> Values:
    """The column's number by slice, from what this task left; nothing where it is another's."""
    if task.kind == "train" and column.score == TRAINING:
        lines = read_metrics(task.output / "metrics.jsonl")
        logged = [line[column.metric] for line in lines if line.get(column.metric) is not None]  # None: not finite
        return {column.slice: round(float(logged[-1]), 5)} if logged else {}
    if task.kind != column.score:
        return {}
    wanted = column.settings.items()
    return {
        score["slice"]: round(score["value"], 5)
        for score in _scores(task)
        if score["metric"] == column.metric and wanted <= score["settings"].items()
    }


def _scores(task: Task) -> list[dict[str, Any]]:
    file = results_file(task)
    if file is None:
        raise EvalError(f"{task.folder} is marked as finished and holds no results.json; remove it to score again")
    scores: list[dict[str, Any]] = read_results(file)["scores"]
    return scores


def kind_of(score: str) -> str:
    """Of the tasks that give a column's numbers."""
    return "train" if score == TRAINING else score


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
        freedom = self.count - 1
        factor = STUDENT[freedom - 1] if freedom <= len(STUDENT) else NORMAL
        return abs(self.mean) > factor * self.spread / math.sqrt(self.count)


def difference(these: Mapping[int, float], those: Mapping[int, float]) -> Difference | None:
    """Of the seeds that both have; None without any."""
    pairs = [value - those[seed] for seed, value in these.items() if seed in those]
    return Difference(statistics.mean(pairs), _spread(pairs), len(pairs)) if pairs else None


def mean_and_spread(values: Mapping[int, float]) -> tuple[float, float | None]:
    """Mean and standard deviation over the seeds, None for one."""
    return statistics.mean(values.values()), _spread(list(values.values()))


def slices_of(lines: Lines) -> list[str]:
    """All slices of a curve's rungs, the widest first."""
    found = {slice_ for by_slice in lines.values() for slice_ in by_slice}
    return sorted(found, key=lambda slice_: int(slice_.partition("/")[2] or 1))


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
