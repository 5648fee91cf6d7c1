"""What `python -m franca.reproduce` does once its arguments are read."""

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path

from franca.config import ConfigError
from franca.data.errors import DataError
from franca.eval.figures import can_draw
from franca.reproduce.comparison import agreements, points_of, recorded_points
from franca.reproduce.curve import Curve, window_of
from franca.reproduce.errors import ReproduceError, Stopped
from franca.reproduce.listing import listing
from franca.reproduce.machine import differences, other_images
from franca.reproduce.recipe import Recipe, find_recipe, learned
from franca.reproduce.record import GIVEN, NONE, Record, changed_since, evaluated_on, read_record
from franca.reproduce.recording import record_seeds, summary
from franca.reproduce.report import Outcome, as_data, differing_lines, point_line, table, verdict
from franca.reproduce.run import RESULT, FolderOfRun

REPRODUCED, DIFFERS, ERROR = 0, 1, 2
PICTURE = "reproduce.png"


def run(options: argparse.Namespace) -> int:
    """As asked; returns the exit status."""
    try:
        _check(options)
        if not options.name:
            print("\n".join(listing()))
        elif options.record:
            _record(options)
        else:
            return _reproduce(find_recipe(options.name), options.overrides, options.until, options.dry_run)
    except (Stopped, KeyboardInterrupt) as error:
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)  # while nothing trained
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except (ReproduceError, ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    return REPRODUCED


def _check(options: argparse.Namespace) -> None:
    """Raises ReproduceError for options that don't go together."""
    if not options.record and (options.force or options.tolerance):
        raise ReproduceError("--force and --tolerance belong to --record, which is missing")
    if options.record and (options.until is not None or options.dry_run or not options.name):
        raise ReproduceError("--record needs the name of a recipe, and runs it to its end: no --until, no --dry-run")
    if options.dry_run and not options.name:
        raise ReproduceError("--dry-run needs the name of a recipe")
    if options.until is not None and options.until < 1:
        raise ReproduceError(f"--until {options.until}: give a step of the run, 1 or more")


def _record(options: argparse.Namespace) -> None:
    seeds = _seeds(options.record)
    given = dict(_tolerance(text) for text in options.tolerance)
    recipe = find_recipe(options.name)
    record = record_seeds(recipe, options.overrides, seeds, given, options.force, _say)
    print(f"{recipe.record}: {record.recipe}, seeds {', '.join(map(str, seeds))}; tolerances:")
    print("\n".join(summary(record)))
    if len(seeds) == 2:
        _say("two seeds say little of a spread: a third makes verdicts that can be relied on")


def _reproduce(recipe: Recipe, overrides: list[str], until: int | None, dry_run: bool) -> int:
    record = read_record(recipe.record)
    run = _planned(recipe, record, overrides)
    _require_unchanged(record, run)
    wanted = recorded_points(record, until)
    if not wanted:
        first = min(step for step, _ in recorded_points(record))
        raise ReproduceError(f"--until {until}: the first recorded point is that of step {first}; give that or a later")
    if until is not None and until > run.config.steps:
        raise ReproduceError(
            f"--until {until}: {recipe.name} has {run.config.steps} steps; without --until all are run"
        )
    run.require_same()
    watcher = _Watcher(record, run, until, wanted)
    if dry_run:
        _say("\n".join(_plan_lines(record, run, until, watcher)))
        return REPRODUCED
    if others := other_images(record.facts, run.begun_with):
        _say(f"WARNING: these are not the images that were recorded ({'; '.join(others)}): its curve may be another")
    every = run.config.log.every
    _say(f"recorded losses are means over {window_of(run.config.steps, every)} steps, the run's own lines over {every}")
    if watcher.look():
        _say(f"nothing was trained: {run.output} holds the run already, up to there")
    else:
        run.train(watcher.enough, _say)
    return _conclude(record, run, until, watcher)


def _plan_lines(record: Record, run: FolderOfRun, until: int | None, watcher: "_Watcher") -> list[str]:
    """What would be run and compared, and what differs from the record by now."""
    steps, reached = run.config.steps, max((line["step"] for line in run.lines()), default=0)
    name = f"{record.recipe}, seed {run.config.seed}"
    points = f"{len(watcher.wanted)} points are compared with seeds {', '.join(map(str, record.seeds))}"
    if watcher.all_there(run.curve()):
        todo = f"{name}: nothing would be trained, {run.output} holds the run up to step {reached}"
    else:
        begun = f"from its last state on, behind or at step {reached}," if reached else "from the beginning"
        todo = f"{name}: {begun} up to step {until or steps} of {steps}, in {run.output}"
        points += f"; the steps of a whole run took {record.minutes:.1f} minutes there"
    return [todo, points, *differing_lines(run.made_elsewhere, differences(record.facts, run.begun_with))]


def _planned(recipe: Recipe, record: Record, overrides: list[str]) -> FolderOfRun:
    """The run, of the first recorded seed and in its own folder unless told otherwise."""
    seed = recipe.configure([f"seed={next(iter(record.seeds))}", *overrides]).seed
    chosen = {"output": f"runs/reproduce/{recipe.name}-seed{seed}", "seed": seed}
    given = {text.partition("=")[0] for text in overrides}
    own = [*overrides, *(f"{key}={value}" for key, value in chosen.items() if key not in given)]
    return FolderOfRun(recipe, own, recipe.configure(own))


def _require_unchanged(record: Record, run: FolderOfRun) -> None:
    """Raises ReproduceError when the record is that of another configuration, or of other evaluations."""
    now = learned(run.config)
    changed = changed_since(record, now)
    if changed:
        rows = "; ".join(f"{key}: {record.learned[key]!r} recorded, {now.get(key)!r} now" for key in changed)
        raise ReproduceError(
            f"the recipe {record.recipe} has changed since its curve was recorded ({rows}): record it again "
            "(--record 0,1,2 --force), or undo the change"
        )
    here = evaluated_on(run.config)
    if here != record.evaluated and record.evaluated != NONE:
        folders = "evaluation.train=FOLDER evaluation.test=FOLDER"
        if not any(text.startswith("data.path=") for text in run.overrides):
            folders = f"data.path=FOLDER {folders}"
        advice = f"add {folders}" if record.evaluated == GIVEN else "leave out evaluation.train= and evaluation.test="
        raise ReproduceError(f"scores were recorded with {record.evaluated}, this run would have {here}: {advice}")


class _Watcher:
    """Says each recorded point as soon as the run has reached it."""

    def __init__(self, record: Record, run: FolderOfRun, until: int | None, wanted: set[tuple[int, str]]) -> None:
        self.record, self.run, self.until, self.wanted = record, run, until, wanted
        self.curve: Curve = {}
        self._size = -1

    def enough(self) -> bool:
        """Whether to stop the run; one that has its last step to do ends by itself."""
        return self.look() and self.until is not None and self.until < self.run.config.steps

    def look(self) -> bool:
        """Whether all recorded points are reached; what is new is printed first."""
        metrics = self.run.output / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if size != self._size:
            self._size = size
            before, self.curve = self.curve, self.run.curve()
            for point in points_of(self.record, self.curve, self.until):
                if point.step not in before.get(point.quantity, {}):
                    with suppress(OSError):  # the terminal is gone; the run may still have to save
                        _say(point_line(point, self.record))
        return self.all_there(self.curve)

    def all_there(self, curve: Curve) -> bool:
        """Whether a curve holds all recorded points."""
        return all(step in curve.get(name, {}) for step, name in self.wanted)


def _conclude(record: Record, run: FolderOfRun, until: int | None, watcher: _Watcher) -> int:
    """Table, verdict, files; returns the exit status."""
    missing = sorted(point for point in watcher.wanted if point[0] not in watcher.curve.get(point[1], {}))
    if missing:
        step, name = missing[0]
        raise ReproduceError(
            f"the run ended without {name} of step {step}, which is recorded; {run.output / 'metrics.jsonl'} holds "
            "what it wrote"
        )
    points = points_of(record, watcher.curve, until)
    outcome = Outcome(
        record=record,
        seed=run.config.seed,
        steps=run.config.steps,
        until=until,
        agreements=agreements(record, points),
        differences=differences(record.facts, run.begun_with),
        made_elsewhere=run.made_elsewhere,
        other_images=bool(other_images(record.facts, run.begun_with)),
        own=_from_own_seed(record, run.config.seed, watcher.curve, until),
    )
    _say("\n" + table(outcome.agreements))
    _say("\n" + "\n".join(verdict(outcome)))
    run.note(as_data(outcome))
    _say(f"points: {run.output / RESULT}")
    _draw(run.output / PICTURE, outcome)
    return REPRODUCED if outcome.reproduced else DIFFERS


def _from_own_seed(record: Record, seed: int, curve: Curve, until: int | None) -> float | None:
    """The largest deviation from the recorded curve of the same seed, in tolerances."""
    recorded = record.seeds.get(seed)
    if recorded is None:
        return None
    offs = [
        float("inf") if (now := curve[name][step]) is None else abs(now - value) / record.tolerances[name][step]
        for step, name in recorded_points(record, until)
        if (value := recorded[name][step]) is not None
    ]
    return max(offs)


def _draw(path: Path, outcome: Outcome) -> None:
    if not can_draw():
        _say("no picture: matplotlib is not installed (pip install 'franca[eval]')")
        return
    from franca.reproduce.figure import draw

    draw(path, outcome)
    _say(f"picture: {path}")


def _seeds(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]. Raises ReproduceError."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ReproduceError(f"--record {text}: give seeds, each once, such as 0,1,2")
    return [int(word) for word in words]


def _tolerance(text: str) -> tuple[str, float]:
    """ "loss=0.05" -> ("loss", 0.05). Raises ReproduceError."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ReproduceError(f"--tolerance {text}: give QUANTITY=VALUE with a value above 0, such as loss=0.05")
    return name, number


def _say(line: str) -> None:
    print(line, flush=True)
