"""A run made into a release: a folder with weights, what they come from, and the means to check both."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from franca.files import replace_text
from franca.hub import CheckpointError
from franca.hub.load import ENTRY_POINTS
from franca.hub.registry import SHORT_NAMES
from franca.publish.card import Card, model_card
from franca.publish.errors import PublishError
from franca.publish.listing import write_listing
from franca.publish.parts import (
    RASA_HEAD,
    TEACHER,
    check_state,
    check_teacher,
    release_rasa,
    release_state,
    release_teacher,
)
from franca.publish.placing import place, staged
from franca.publish.privacy import NOT_STATED, last_name, without_places
from franca.publish.run import ALL, Run, open_run
from franca.train.config import TrainConfig

CONFIG, METRICS, CARD = "config.yaml", "metrics.jsonl", "README.md"


@dataclass(frozen=True)
class Options:
    """What goes into a release.

    rasa: folder of a RASA run on the released teacher. with_state: the whole training state of each chosen step.
    steps: "all" (those that checkpoint.keep_every keeps, and the newest), "last", or steps such as "1000,2000"; the
    newest of them is the release, the others are intermediate. licence, name, data: as the model card and the files
    say them; name and data are by default the last names of the run's folder and of the data's path.
    """

    rasa: Path | None = None
    with_state: bool = False
    steps: str = ALL
    licence: str = ""
    name: str = ""
    data: str = ""


@dataclass(frozen=True)
class Release:
    """What was written."""

    folder: Path
    step: int
    steps: list[int]
    files: list[dict[str, Any]]  # as in manifest.json
    notes: list[str] = field(default_factory=list)  # what its maker should know


def publish(
    run: str | Path, output: str | Path, options: Options, force: bool = False, say: Callable[[str], None] = print
) -> Release:
    """Write the release of a run; it is read back before it gets its name.

    Args:
        run: output folder of franca.train; it may still be training.
        output: folder to write.
        force: replace a release that is there.
        say: told what is being done.

    Raises:
        PublishError: the run, the options or the output can't be used.
        CheckpointError: a teacher or a state is damaged, or could not be read back.
        OSError: writing failed. In all cases what was there before is as it was.
    """
    found, output = open_run(run), Path(output)
    _require_apart(found.path, output)
    steps = found.choose(options.steps)
    with staged(output, force) as folder:
        try:
            files = _Writer(found, steps, options, folder, say).write()
        except FileNotFoundError as error:
            raise PublishError(
                f"a file went away while it was read ({error}); if the run trains, publish again"
            ) from error
    return Release(output, steps[-1], steps, files, _notes(found, options))


class _Writer:
    """Fills the folder of a release, part by part."""

    def __init__(self, run: Run, steps: list[int], options: Options, folder: Path, say: Callable[[str], None]) -> None:
        self.run, self.steps, self.options, self.folder, self.say = run, steps, options, folder, say
        self.step = steps[-1]
        self.name = options.name or last_name(str(run.path.resolve()))
        self.data = options.data or data_name(run.config)
        self.facts: dict[str, dict[str, Any]] = {}

    def write(self) -> list[dict[str, Any]]:
        described = {step: self._teacher(step) for step in self.steps}
        teacher = self.folder / TEACHER
        rasa = release_rasa(self.options.rasa, self.folder, teacher) if self.options.rasa else None
        if rasa:
            self.facts[RASA_HEAD] = {"hash": rasa["hash"]}
        for step in self.steps if self.options.with_state else []:
            self._state(step)
        replace_text(self.folder / CONFIG, public_config(self.run.config, self.data, self.name))
        lines = [json.dumps(line) + "\n" for line in self.run.lines if line["step"] <= self.step]
        replace_text(self.folder / METRICS, "".join(lines))
        newest = described[self.step]
        say_of_card = Card(
            name=self.name,
            run=self.run,
            described=described,
            data=self.data,
            parameters=check_teacher(teacher, newest["hash"]),
            entry_point=entry_point(newest["arch"], teacher),
            with_state=self.options.with_state,
            rasa=rasa,
            licence=self.options.licence or NOT_STATED,
        )
        replace_text(self.folder / CARD, model_card(say_of_card))
        head = {
            "name": self.name,
            "step": self.step,
            "images_seen": newest["images_seen"],
            "config": CONFIG,
            "licence": self.options.licence or None,
            "trained_with": newest["trained_with"],
        }
        return write_listing(self.folder, head, self.facts)

    def _teacher(self, step: int) -> dict[str, Any]:
        """The released teacher of a step: at the top the newest, the others below checkpoints/."""
        source = self.run.states[step]
        target = self.folder / (TEACHER if step == self.step else f"checkpoints/{source.name}/{TEACHER}")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"step {step}: teacher")
        described = release_teacher(source / TEACHER, target, self.data)
        if step != self.step:
            check_teacher(target, described["hash"])
        known = {"step": step, "images_seen": described["images_seen"], "config": CONFIG}
        self.facts[str(target.relative_to(self.folder))] = known | {"hash": described["hash"]}
        if step != self.step or self.options.with_state:
            self.facts[f"checkpoints/{source.name}"] = known
            self.facts[f"checkpoints/{source.name}/{TEACHER}"] = known | {"hash": described["hash"]}
        return described

    def _state(self, step: int) -> None:
        source = self.run.states[step]
        target = self.folder / "checkpoints" / source.name
        target.mkdir(parents=True, exist_ok=True)
        self.say(f"step {step}: training state")
        if step == self.step:
            place(self.folder / TEACHER, target / TEACHER)
        release_state(source, target)
        check_state(target)


def public_config(config: TrainConfig, data: str, name: str) -> str:
    """The configuration as YAML that `franca.train` reads, every path reduced to a name."""
    container = without_places(OmegaConf.to_container(OmegaConf.structured(config)))
    container["output"] = name
    if container["data"]["path"]:
        container["data"]["path"] = data
    return OmegaConf.to_yaml(OmegaConf.create(container))


def data_name(config: TrainConfig) -> str:
    """The images in words: names of folders, without the places where they lie."""
    if config.data.parts:
        return "mixture of " + ", ".join(last_name(part.path) or part.source for part in config.data.parts)
    return last_name(config.data.path) if config.data.path else config.data.source


def entry_point(arch: str, teacher: Path) -> str | None:
    """The entry point of torch.hub that loads this teacher, tried out; None where it is of no published size."""
    if arch not in SHORT_NAMES:
        return None
    name = f"franca_{SHORT_NAMES[arch]}"
    try:
        ENTRY_POINTS[name](local_state_dict=teacher)
    except CheckpointError:
        return None
    return name


def _require_apart(run: Path, output: Path) -> None:
    ours, theirs = run.resolve(), output.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise PublishError(f"{output} and the run {run} lie within each other: choose a folder outside of the run")


def _notes(run: Run, options: Options) -> list[str]:
    notes = []
    newest = max(run.states)
    if run.in_use:
        notes.append(f"the run is still training; its last complete checkpoint is of step {newest}")
    elif newest < run.config.steps:
        notes.append(f"the run did not come to its end: step {newest} of {run.config.steps}")
    if not options.data:
        notes.append(f"the data is called {data_name(run.config)!r}, after its folder; --data NAME says it better")
    if not options.licence:
        notes.append("the licence is not stated; --licence TEXT states it")
    return notes
