"""The tasks of a study: what each runs, what it needs, and where it leaves what it found."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from franca.config import ConfigError, read_yaml
from measuring.facts import ROOT
from studies.config import StudyConfig

# in the folder of a task: once it has finished, once it has failed, and what its process writes
DONE, FAILURE, OUTPUT = "done.json", "failed.txt", "output"
PLACEHOLDER = re.compile(r"\{([a-z0-9_]+)\}")
BELOW = re.compile(PLACEHOLDER.pattern + r"/([^\s,;:}\]]+)")


class Identity(NamedTuple):
    """Which task of which version of a study, on whatever machine."""

    rung: str
    seed: int
    kind: str
    digest: str

    @property
    def question(self) -> tuple[str, int, str]:
        """Which one it answers, in whatever version of the study."""
        return self[:3]


@dataclass(frozen=True)
class Task:
    """One process: a training, a RASA run, or one score.

    digest: hash of all that its outcome depends on but code and data; a task that was changed is another one. folder:
    its own, named by that. output: the part of it that the process writes. needs: tasks before it.
    """

    rung: str
    seed: int
    kind: str  # train | rasa | the name of a score
    digest: str
    command: tuple[str, ...]  # arguments of python
    folder: Path
    needs: tuple["Task", ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.rung}, seed {self.seed}: {self.kind}"

    @property
    def identity(self) -> Identity:
        """Without its place."""
        return Identity(self.rung, self.seed, self.kind, self.digest)

    @property
    def output(self) -> Path:
        """What the process is told to write to."""
        return self.folder / OUTPUT

    @property
    def finished(self) -> bool:
        """Whether it has run to its end."""
        return (self.folder / DONE).exists()

    @property
    def failed(self) -> bool:
        """Whether its last try failed."""
        return (self.folder / FAILURE).exists() and not self.finished

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

    Raises ConfigError where a placeholder has no folder, or a configuration file is missing.
    """
    return list(_Planner(study, folder, data).tasks())


def with_needs(tasks: Iterable[Task]) -> set[Task]:
    """These, and all that must be finished before them."""
    return {each for task in tasks for each in (task, *with_needs(task.needs))}


class _Planner:
    """Makes the tasks of one study."""

    def __init__(self, study: StudyConfig, folder: Path, data: Mapping[str, Path]) -> None:
        self.study, self.folder, self.data = study, folder, data
        self.networks: dict[tuple[str, int], Network] = {}

    def tasks(self) -> Iterator[Task]:
        """In order."""
        study = self.study
        for seed in dict.fromkeys(seed for name in study.rungs for seed in study.seeds_of(name)):
            for name in (name for name in study.rungs if seed in study.seeds_of(name)):
                self.networks[name, seed] = network = self._network(name, seed)
                if network.made_by and network.made_by.rung == name:
                    yield network.made_by
                for score in study.scores_of(name):
                    yield self._score(name, seed, score, network)

    def _network(self, name: str, seed: int) -> Network:
        study, rung = self.study, self.study.rungs[name]
        before = self.networks.get((rung.after, seed)) if rung.after else None
        if rung.after and before is None:
            raise ConfigError(f"rungs.{name}: seed {seed}, but {rung.after} has none of that number")
        needs = (before.made_by,) if before and before.made_by else ()
        if rung.train is not None:
            beginning = {"init_from=": before.teacher} if before else {}
            given = [*study.train, *rung.train, f"seed={seed}"]
            task = self._made(name, seed, "train", "franca.train", study.config, given, beginning, needs)
            return Network(("--model", str(task.output / "teacher.pth")), task, task.output / "teacher.pth")
        if rung.rasa is not None:
            assert before is not None
            given, backbone = [*study.rasa, *rung.rasa, f"seed={seed}"], {"backbone.name=": before.teacher}
            task = self._made(name, seed, "rasa", "rasa.train", study.rasa_config, given, backbone, needs)
            return Network((*before.arguments, "--rasa", str(task.output / "rasa.pth")), task, before.teacher)
        model = rung.model.replace("{after}", str(before.teacher) if before else "")
        return Network(("--model", model), before.made_by if before else None, None)

    def _made(
        self,
        name: str,
        seed: int,
        kind: str,
        module: str,
        file: str,
        given: list[str],
        made: Mapping[str, Path | None],
        needs: tuple[Task, ...],
    ) -> Task:
        """What makes a network: a module with its configuration file; ``made``: options with files of other tasks."""
        path = ROOT / file
        known = [module, content_of(path), *given, *made]
        options = [f"{option}{value}" for option, value in made.items()]
        command = ("-m", module, "--config", str(path), *filled(given, self.data), *options)
        return self._task(name, seed, kind, command, "output={}", known, needs)

    def _score(self, name: str, seed: int, score: str, network: Network) -> Task:
        asked, rung = self.study.scores[score], self.study.rungs[name]
        command = ("-m", "franca.eval", *filled(asked, self.data), *network.arguments)
        needs = (network.made_by,) if network.made_by else ()
        known = [*asked, rung.model]
        return self._task(
            name, seed, score, (*command, "--cache", str(self.folder / "features")), "--output={}", known, needs
        )

    def _task(
        self,
        rung: str,
        seed: int,
        kind: str,
        command: tuple[str, ...],
        output: str,
        known: Sequence[str],
        needs: tuple[Task, ...],
    ) -> Task:
        """known: what the outcome depends on, without places on this machine; with that of the tasks before."""
        digest = hashlib.sha256(json.dumps([*known, [task.digest for task in needs]]).encode()).hexdigest()[:8]
        own = self.folder / f"{rung}-{seed}-{kind}-{digest}"
        return Task(rung, seed, kind, digest, (*command, output.format(own / OUTPUT)), own, needs)


def content_of(file: Path) -> str:
    """What a configuration file says, without its comments. Raises ConfigError."""
    if not file.is_file():
        raise ConfigError(f"config file {file} does not exist; a study names it as seen from {ROOT}")
    return json.dumps(OmegaConf.to_container(read_yaml(file)), sort_keys=True)


def filled(texts: Sequence[str], data: Mapping[str, Path]) -> list[str]:
    """Texts with {NAME} replaced by the folder of that name. Raises ConfigError where there is none."""

    def folder_of(found: re.Match[str]) -> str:
        if found[1] not in data:
            given = f", besides {', '.join(data)}" if data else ""
            raise ConfigError(f"{found.string!r} needs a folder: give --data {found[1]}=FOLDER{given}")
        return str(data[found[1]])

    return [PLACEHOLDER.sub(folder_of, text) for text in texts]


def require_parts(texts: Iterable[str], data: Mapping[str, Path]) -> None:
    """Raises ConfigError where a text asks for something below the folder of a {NAME}, and it is not there."""
    for text in texts:
        for name, below in BELOW.findall(text):
            if name in data and not (data[name] / below).exists():
                raise ConfigError(f"--data {name}={data[name]}: {text!r} needs {below!r} in it")
