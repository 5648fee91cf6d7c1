"""Making a record: some seeds of a recipe are run, one after another, and their curves written down."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile

from franca.reproduce.curve import Curve, minutes_of, steps_of
from franca.reproduce.errors import ReproduceError
from franca.reproduce.machine import FACTS
from franca.reproduce.recipe import Recipe, learned
from franca.reproduce.record import Record, evaluated_on, write_record
from franca.reproduce.run import FolderOfRun
from franca.reproduce.tolerance import rule_of, tolerances

Say = Callable[[str], None]


def record_seeds(
    recipe: Recipe, overrides: list[str], seeds: Sequence[int], given: Mapping[str, float], force: bool, say: Say
) -> Record:
    """Run every seed to its end, or find it whole, then write the recipe's record.

    given: quantity -> tolerance, in place of what the seeds' spread gives.
    Raises what a run does; ReproduceError too when there is a record already and ``force`` is off, when the runs are
    too short for a point, when one was not finite, or when one seed comes without tolerances.
    """
    if len(seeds) == 1 and not given:
        raise ReproduceError(
            f"--record {seeds[0]}: one seed tells no spread; name two or more (three are better), or give "
            "--tolerance QUANTITY=VALUE for each quantity"
        )
    if recipe.record.exists() and not force:
        raise ReproduceError(f"{recipe.record} exists; --force replaces it once the runs are done")
    _require_writable(recipe.record.parent)
    config = recipe.configure(overrides)
    if config.steps < config.log.every:
        raise ReproduceError(
            f"{recipe.file}: with steps={config.steps} and log.every={config.log.every} a run ends before its first "
            f"line of losses, and nothing would be recorded; set log.every to {config.steps} or less there"
        )
    base = config.output if any(text.startswith("output=") for text in overrides) else f"runs/record/{recipe.name}"
    runs = {}
    for seed in seeds:
        own = [*overrides, f"seed={seed}", f"output={base}-seed{seed}"]
        runs[seed] = FolderOfRun(recipe, own, recipe.configure(own))
        _train_whole(runs[seed], say)
    curves: dict[int, Curve] = {seed: run.curve() for seed, run in runs.items()}
    for seed, curve in curves.items():
        _require_finite(seed, curve)
    source = next((run for run in runs.values() if run.made_elsewhere), next(iter(runs.values())))
    record = Record(
        recipe=recipe.name,
        facts={name: source.begun_with[name] for name in FACTS},
        minutes=fmean(minutes_of(run.lines()) for run in runs.values()),
        evaluated=evaluated_on(config),
        learned=learned(config),
        tolerance=rule_of(given),
        tolerances=tolerances(curves, given),
        seeds=curves,
    )
    write_record(recipe.record, record)
    return record


def _require_writable(folder: Path) -> None:
    """Raises ReproduceError where the record could not be written, once the runs are done; makes the folder."""
    try:
        folder.mkdir(exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReproduceError(
            f"the record is to lie in {folder}, which can't be written to ({error.strerror}); copy the recipe elsewhere"
        ) from None


def _train_whole(run: FolderOfRun, say: Say) -> None:
    run.require_same()
    if run.complete:
        say(f"{run.output} holds that run already, whole: nothing was trained")
        return
    say(f"{run.recipe.name}, seed {run.config.seed}: training in {run.output}")
    run.train(lambda: False, say)
    if not run.complete:
        raise ReproduceError(f"{run.output / 'metrics.jsonl'} ends before step {run.config.steps}: was it changed?")


def _require_finite(seed: int, curve: Curve) -> None:
    lost = [(step, name) for step in steps_of(curve) for name in curve if curve[name].get(step, 0.0) is None]
    if lost:
        step, name = lost[0]
        raise ReproduceError(f"seed {seed} was not finite at step {step} ({name}): nothing to compare others with")


def summary(record: Record) -> list[str]:
    """Which tolerances follow, in words."""
    ranges = {name: (min(at.values()), max(at.values())) for name, at in record.tolerances.items()}
    return [record.tolerance, *(f"  {name}: {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())]
