"""The recipes that have a recorded curve, and what to expect of them."""

from franca.eval.result import columns
from franca.reproduce.curve import SCORES
from franca.reproduce.recipe import all_recipes
from franca.reproduce.record import Record, read_record

HEADER = ("recipe", "seeds", "minutes there", "at the end", "recorded on")


def listing() -> list[str]:
    """A table, one line each; then those without a record. Raises ReproduceError where there are no recipes."""
    recipes = all_recipes()
    rows = [HEADER, *(_row(read_record(recipe.record)) for recipe in recipes if recipe.record.exists())]
    without = [recipe.name for recipe in recipes if not recipe.record.exists()]
    said = "minutes: of the steps alone, mean over the seeds, beside whatever else ran on that machine"
    return [columns(rows), said, *([f"not recorded yet: {', '.join(without)}"] if without else [])]


def _row(record: Record) -> tuple[str, ...]:
    facts, seeds = record.facts, ", ".join(map(str, record.seeds))
    place = f"{facts['device']}, {facts['precision']}, torch {facts['torch']}"
    return record.recipe, seeds, f"{record.minutes:.0f}", _final(record), place


def _final(record: Record) -> str:
    """Its last scores, or its last loss where it has none."""
    scores = [name for name in record.tolerances if name.startswith(SCORES)]
    ends = {name: record.mean(name, record.steps(name)[-1]) for name in scores or ["loss"]}
    return ", ".join(
        f"{name} {value:.1f} %" if name in scores else f"{name} {value:.3f}" for name, value in ends.items()
    )
