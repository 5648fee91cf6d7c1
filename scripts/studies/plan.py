"""The tasks of a study: what each runs, what it needs, and where it leaves what it found."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from franca.config import ConfigError
from measuring.facts import ROOT
from studies.config import StudyConfig

DONE, OUTPUT = "done.json", "output"  # in the folder of a task; the first once it has finished
PLACEHOLDER = re.compile(r"\{([a-z0-9_]+)\}")


@dataclass(frozen=True)
class Task:
    """One process: a training, a RASA run, or one score.

    folder: its own; named by what it runs, so that a task that was changed is another one. output: the part of it that
    the process writes. needs: tasks before it.
    """

    rung: str
    seed: int
    kind: str  # train | rasa | the name of a score
    command: tuple[str, ...]  # arguments of python
    folder: Path
    needs: tuple["Task", ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.rung}, seed {self.seed}: {self.kind}"

    @property
    def output(self) -> Path:
        """What the process is told to write to."""
        return self.folder / OUTPUT

    @property
    def finished(self) -> bool:
        """Whether it has run to its end."""
        return (self.folder / DONE).exists()

    def line(self) -> str:
        """As one would type it."""
        return shlex.join(["python", *self.command])


@dataclass(frozen=True)
class Network:
    """How `franca eval` is told of a rung's network, and the task that makes it."""

    arguments: tuple[str, ...]
    made_by: Task | None
    teacher: Path | None


def plan(study: StudyConfig, folder: Path, data: Mapping[str, Path]) -> list[Task]:
    """All tasks, a seed's whole ladder before the next seed's, each behind those that it needs.

    Raises ConfigError where a placeholder has no folder.
    """
    tasks: list[Task] = []
    networks: dict[tuple[str, int], Network] = {}
    seeds = list(dict.fromkeys(seed for name in study.rungs for seed in study.seeds_of(name)))
    for seed in seeds:
        for name in study.rungs:
            if seed not in study.seeds_of(name):
                continue
            networks[name, seed] = network = _network(study, name, seed, networks, folder, data)
            tasks += [network.made_by] if network.made_by and network.made_by.rung == name else []
            for score in study.scores_of(name):
                tasks.append(_score(study, name, seed, score, network, folder, data))
    return tasks


def _network(
    study: StudyConfig,
    name: str,
    seed: int,
    networks: Mapping[tuple[str, int], Network],
    folder: Path,
    data: Mapping[str, Path],
) -> Network:
    rung = study.rungs[name]
    before = networks.get((rung.after, seed)) if rung.after else None
    if rung.after and before is None:
        raise ConfigError(f"rungs.{name}: seed {seed}, but {rung.after} has none of that number")
    needs = (before.made_by,) if before and before.made_by else ()
    if rung.train is not None:
        beginning = [f"init_from={before.teacher}"] if before else []
        given = filled([*study.train, *rung.train, *beginning, f"seed={seed}"], data)
        command = ("-m", "franca.train", "--config", str(ROOT / study.config), *given)
        task = _task(name, seed, "train", command, folder, needs, output="output={}")
        return Network(("--model", str(task.output / "teacher.pth")), task, task.output / "teacher.pth")
    if rung.rasa is not None:
        assert before is not None
        given = filled([*study.rasa, *rung.rasa, f"backbone.name={before.teacher}", f"seed={seed}"], data)
        command = ("-m", "rasa.train", "--config", str(ROOT / study.rasa_config), *given)
        task = _task(name, seed, "rasa", command, folder, needs, output="output={}")
        return Network((*before.arguments, "--rasa", str(task.output / "rasa.pth")), task, before.teacher)
    model = rung.model.replace("{after}", str(before.teacher) if before else "")
    return Network(("--model", model), before.made_by if before else None, None)


def _score(
    study: StudyConfig, name: str, seed: int, score: str, network: Network, folder: Path, data: Mapping[str, Path]
) -> Task:
    asked = filled(study.scores[score], data)
    command = ("-m", "franca.eval", *asked, *network.arguments, "--cache", str(folder / "features"))
    needs = (network.made_by,) if network.made_by else ()
    return _task(name, seed, score, command, folder, needs, output="--output={}")


def _task(
    rung: str, seed: int, kind: str, command: tuple[str, ...], folder: Path, needs: tuple[Task, ...], output: str
) -> Task:
    """The task, in a folder whose name ends with a hash of the command and of those before it."""
    told = [str(part).replace(str(folder), "") for part in command] + [task.folder.name for task in needs]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
    own = folder / f"{rung}-{seed}-{kind}-{digest}"
    return Task(rung, seed, kind, (*command, output.format(own / OUTPUT)), own, needs)


def filled(texts: Sequence[str], data: Mapping[str, Path]) -> list[str]:
    """Texts with {NAME} replaced by the folder of that name. Raises ConfigError where there is none."""

    def folder_of(found: re.Match[str]) -> str:
        if found[1] not in data:
            raise ConfigError(f"{found.string!r} needs a folder: give --data {found[1]}=FOLDER")
        return str(data[found[1]])

    return [PLACEHOLDER.sub(folder_of, text) for text in texts]
