"""A run as its folder shows it: configuration, whole states, lines of numbers."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from franca.config import ConfigError
from franca.metrics import read_metrics
from franca.publish.errors import PublishError
from franca.train.checkpoint import MANIFEST
from franca.train.config import TrainConfig, load_config

ALL, LAST = "all", "last"


@dataclass(frozen=True)
class Run:
    """What was found in a run folder."""

    path: Path
    config: TrainConfig
    states: dict[int, Path]  # step -> folder of a whole state, oldest first
    lines: list[dict[str, Any]]  # of metrics.jsonl
    in_use: bool  # another process is training there

    def choose(self, steps: str) -> list[int]:
        """The steps that ``steps`` asks for, oldest first: "all" (those kept for good, and the newest), "last", "N,N".

        Raises:
            PublishError: it is none of these, or asks for a step of which there is no whole state.
        """
        newest, every = max(self.states), self.config.checkpoint.keep_every
        if steps == LAST:
            return [newest]
        if steps == ALL:
            return [step for step in self.states if step == newest or (every and step % every == 0)]
        try:
            wanted = sorted({int(word) for word in steps.split(",")})
        except ValueError:
            raise PublishError(f"steps={steps!r}: give {ALL}, {LAST}, or steps such as 1000,2000") from None
        missing = [step for step in wanted if step not in self.states]
        if missing:
            there = ", ".join(map(str, self.states))
            raise PublishError(f"{self.path} holds no whole state of step {missing[0]}; there are: {there}")
        return wanted

    def last_line(self, name: str, step: int) -> dict[str, Any] | None:
        """The last line up to ``step`` that has an entry whose name begins so."""
        found = (
            line for line in reversed(self.lines) if line["step"] <= step and any(k.startswith(name) for k in line)
        )
        return next(found, None)


def open_run(path: str | Path) -> Run:
    """Read a run folder; nothing in it is changed.

    Raises:
        PublishError: it is no folder of a pretraining run, or has no whole state yet.
    """
    path = Path(path)
    if not path.is_dir():
        raise PublishError(f"{path} is no folder; give the output folder of a run of franca.train")
    recorded = path / "config.yaml"
    if (path / "rasa.json").exists() or (path / "rounds.pth").exists():
        raise PublishError(f"{path} is a RASA run: give the pretraining run it belongs to, and this one as --rasa")
    if not recorded.is_file():
        raise PublishError(f"{path} is no run of franca.train: it holds no config.yaml")
    try:
        config = load_config(recorded)
    except ConfigError as error:
        raise PublishError(f"{path} is no run that this version of franca.train made: {error}") from None
    states = {step_of(folder): folder for folder in sorted((path / "checkpoints").glob("step_*")) if _is_whole(folder)}
    if not states:
        raise PublishError(f"{path} holds no complete checkpoint yet: wait for the first save, or publish another run")
    return Run(path, config, dict(sorted(states.items())), read_metrics(path / "metrics.jsonl"), _in_use(path))


def step_of(folder: Path) -> int:
    """The step in a state's folder name; -1 in any other."""
    number = folder.name.removeprefix("step_")
    return int(number) if number.isdecimal() else -1


def files_of(state: Path) -> dict[str, int]:
    """Name and size of every file of a state, by its own manifest.

    Raises:
        PublishError: the manifest is damaged, or names a file that is missing, cut off or elsewhere.
    """
    try:
        files = dict(json.loads((state / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PublishError(f"{state / MANIFEST} can't be read ({error})") from None
    for name, size in files.items():
        file = state / name
        if Path(name).name != name or not file.is_file() or file.stat().st_size != size:
            raise PublishError(f"{file} is missing or cut off")
    return files


def _is_whole(state: Path) -> bool:
    try:
        return step_of(state) >= 0 and bool(files_of(state))
    except PublishError:
        return False


def _in_use(path: Path) -> bool:
    """Whether a process holds the run, as `franca.files.held` does. Nothing is held here: a run may start."""
    try:
        with (path / ".lock").open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # no such file, or no locks
        pass
    return False
