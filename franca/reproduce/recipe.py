"""Which recipe is meant, and which of its keys are a user's own."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from franca.config import ConfigError
from franca.reproduce.errors import ReproduceError
from franca.train.build import OPERATIONAL, flatten
from franca.train.config import TrainConfig, load_config

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
# What may differ from the recorded run: where it runs and where its images lie. `evaluation` and `log` are operational
# for a run that is continued, but here they say what is compared.
FREE = (
    *(key for key in OPERATIONAL if key not in ("evaluation", "log")),
    *("precision", "data.path", "evaluation.train", "evaluation.test"),
    *("log.tensorboard", "log.wandb_project", "log.hang_minutes"),
)


@dataclass(frozen=True)
class Recipe:
    """A YAML file, and where the record of its runs lies: beside it in ``recorded``."""

    file: Path

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.stem

    @property
    def record(self) -> Path:
        """The record's file, whether it is there or not."""
        return self.file.parent / "recorded" / f"{self.name}.json"

    def configure(self, overrides: list[str]) -> TrainConfig:
        """The recipe with a user's overrides.

        Raises:
            ConfigError: an override is no key, or its value is out of range.
            ReproduceError: one changes what is learned or compared.
        """
        told = learned(load_config(self.file))
        try:
            mine = learned(config := load_config(self.file, overrides))
        except ConfigError as error:
            fixed = [
                text for text in overrides if (key := text.partition("=")[0]) in told and text != f"{key}={told[key]}"
            ]
            if fixed:
                raise ReproduceError(f"{error}. Besides, {self._refusal(fixed)}") from error
            raise
        changed = [f"{key}={mine[key]!r} (recipe: {told[key]!r})" for key in mine if mine[key] != told[key]]
        if changed:
            raise ReproduceError(self._refusal(changed))
        return config

    def _refusal(self, changes: list[str]) -> str:
        beginning = any(change.startswith("steps=") for change in changes)
        return (
            f"{', '.join(changes)}: that would be another run than {self.name}'s, whose curve says nothing about it. "
            f"Leave it out{'; --until STEP compares the beginning alone' if beginning else ''}. Free are seed and what "
            f"doesn't change what is learned or compared: {', '.join(FREE)}"
        )


def learned(config: TrainConfig) -> dict[str, Any]:
    """What decides how a run's curve looks, besides the seed and the images: {dotted key: value}."""
    return {key: value for key, value in flatten(config).items() if key != "seed" and not _is_free(key)}


def _is_free(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def find_recipe(name: str) -> Recipe:
    """The recipe of that name in configs/recipes, or the YAML file at that path.

    Raises:
        ReproduceError: there is neither; the nearest name and all that exist are given.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ReproduceError(f"{name!r} does not exist; give the path of a YAML file, or the name of a recipe")
        return Recipe(Path(name))
    there = {recipe.name: recipe for recipe in all_recipes()}
    if name not in there:
        nearest = difflib.get_close_matches(name, there, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ReproduceError(
            f"there is no recipe {name!r} in {RECIPES}{hint}; give a YAML file, or one of {', '.join(there)}"
        )
    return there[name]


def all_recipes() -> list[Recipe]:
    """Those of configs/recipes, by name. Raises ReproduceError where the package lies without them."""
    if not RECIPES.is_dir():
        raise ReproduceError(
            f"{RECIPES} does not exist: an installed package comes without configs. Run this in a clone of the "
            "repository, or give the path of a YAML file with its record in the folder 'recorded' beside it"
        )
    return [Recipe(file) for file in sorted(RECIPES.glob("*.yaml"))]
