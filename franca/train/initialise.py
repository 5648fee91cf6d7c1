"""How the networks of a run begin: at random, or with weights from any file that the hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from franca.config import ConfigError
from franca.distributed import on_main
from franca.hub.cache import fetch_backbone, is_there
from franca.hub.checkpoint import hash_tensors
from franca.hub.description import describe
from franca.hub.files import READABLE, read_file
from franca.hub.layouts import Recognised, build, find_description, recognise
from franca.hub.names import State
from franca.hub.preprocessing import told_normalisation
from franca.hub.registry import LICENCE, SHORT_NAMES, Published, find, is_published
from franca.objective import Encoder, StudentTeacher
from franca.train.build import refused_as
from franca.train.config import TrainConfig
from franca.train.fit import fitting_heads, require_same_network
from franca.train.parallel import fill_whole

TEACHER = "teacher.pth"
EXAMPLE = "franca_vitb14@IN21K_224"
HASH_SHOWN = 12  # characters
KEPT = ("stage", "step", "images_seen")  # of the file's own description


@dataclass(frozen=True)
class Start:
    """Weights for the networks of a run, and where they come from."""

    backbone: State  # all tensors of the run's backbone, positions for its grid
    heads: dict[str, State]  # head -> all its tensors; those that are not here begin at random
    facts: dict[str, Any]  # for teacher files: stage, initialised_from
    lines: list[str]  # for people


class Initialisation:
    """The beginning of a run. All ranks call every method together; rank 0 alone reads.

    ``facts`` goes into every teacher file of the run, ``lines`` says the same to people.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.facts: dict[str, Any] = {"stage": "pretrain"}
        self.lines: list[str] = []
        self._was_read = False
        self._start: Start | None = None

    def read(self, pair: StudentTeacher) -> None:
        """Read the file that ``init_from`` names, if it names one. Raises as :func:`read_start`."""

        def read_and_keep() -> tuple[dict[str, Any], list[str]]:
            self._start = read_start(self.config, pair.student)
            return self._start.facts, self._start.lines

        if self.config.init_from:
            self.facts, self.lines = on_main(read_and_keep)
        self._was_read = True

    def fill(self, pair: StudentTeacher) -> None:
        """Put what was read into both networks, and forget it."""
        if not self._was_read:
            self.read(pair)
        if not self.config.init_from:
            return
        start, self._start = self._start, None
        heads = on_main(lambda: list(start.heads) if start else [])
        for network in (pair.student, pair.teacher):
            fill_whole(network.backbone, start.backbone if start else {})
            for name in heads:
                fill_whole(network.get_submodule(name), start.heads[name] if start else {})

    def recall(self, saved: Path) -> None:
        """Take from a saved state what its run began with; the file that this was read from may be gone."""
        if self.config.init_from:
            described = on_main(lambda: describe(saved / TEACHER))
            self.facts = {name: described[name] for name in ("stage", "initialised_from") if name in described}
            self.lines = [f"began with {_name_and_hash(self.facts.get('initialised_from', {}))}"]


def read_start(config: TrainConfig, student: Encoder) -> Start:
    """What ``init_from`` names, made to fit the run's student; nothing is changed in that.

    Raises:
        ConfigError: no such file or published weights, another network than ``model`` describes, or heads that don't
            fit where ``init_heads=loaded``.
        CheckpointError: a file that can't be used, with the reason.
        DownloadError: published weights can't be fetched.
    """
    path = find_file(config.init_from)
    content = read_file(path)
    told = find_description(content, str(path)) is not None
    found = recognise(content, str(path), None if told else config.model.num_heads)
    require_same_network(found, student.backbone, config)
    model = build(found)
    old = model.config["img_size"]
    model.set_resolution(student.backbone.config["img_size"])
    backbone = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("patch_map.")}
    heads = fitting_heads(found, student) if config.init_heads == "loaded" else {}
    facts = _facts(config, path, found, old)
    lines = [*_loaded(config, found, old, facts), *_notes(config, path, found, told_normalisation(path, content))]
    return Start(backbone, heads, facts, lines)


def preview(config: TrainConfig, student: Encoder) -> list[str]:
    """What a run would say of its beginning; nothing is fetched for it. Raises as :func:`read_start`."""
    if not config.init_from:
        return []
    published = None if Path(config.init_from).exists() else _published(config.init_from)
    if published and not is_there(published.name):
        return [f"init_from={config.init_from}: {published.name} is fetched when the run starts"]
    return read_start(config, student).lines


def find_file(init_from: str) -> Path:
    """The file or folder that ``init_from`` names; published weights are fetched, a run stands for its teacher.

    Raises ConfigError where it names nothing, DownloadError where weights can't be fetched.
    """
    path = Path(init_from)
    if path.exists():
        return path / TEACHER if (path / TEACHER).is_file() else path
    published = _published(init_from)
    if published is None:
        raise ConfigError(
            f"init_from={init_from!r}: there is no such file or folder; give {READABLE}, the folder of a run, or "
            f"published weights such as {EXAMPLE}"
        )
    return fetch_backbone(published)


def _published(name: str) -> Published | None:
    """Published weights by entry point, with or without ``@weights``; None for every other name."""
    entry, _, weights = name.partition("@")
    archs = [arch for arch, short in SHORT_NAMES.items() if entry == f"franca_{short}"]
    with refused_as("init_from"):
        return find(archs[0], weights or None) if archs else None


def _facts(config: TrainConfig, path: Path, found: Recognised, old: int) -> dict[str, Any]:
    """Stage, and what the file says of itself; nothing of where it lies."""
    described = found.description or {}
    told = described.get("hash") or hash_tensors(
        {f"backbone.{name}": tensor for name, tensor in found.backbone.items()}
    )
    origin = {"name": _name(config.init_from, path), "hash": told}
    origin |= {name: described[name] for name in KEPT if name in described}
    stage = "high-resolution" if config.data.crops.global_size > old else "continue"
    return {"stage": stage, "initialised_from": origin | {"heads": config.init_heads}}


def _name(init_from: str, path: Path) -> str:
    """A published name as it is, a run's teacher by its run, any other file by its own name: never where it lies."""
    if not Path(init_from).exists():
        return init_from
    folder = path.resolve().parent
    run = folder.parent.parent if folder.name.startswith("step_") else folder
    return run.name if path.name == TEACHER and (run / "config.yaml").is_file() else path.resolve().name


def _name_and_hash(origin: Mapping[str, Any]) -> str:
    seen = f"step {origin['step']}, " if "step" in origin else ""
    return f"{origin.get('name', 'a file')} ({seen}hash {str(origin.get('hash'))[:HASH_SHOWN]})"


def _loaded(config: TrainConfig, found: Recognised, old: int, facts: Mapping[str, Any]) -> list[str]:
    """What both networks have from the file, and what stays random."""
    patch = found.config["patch_size"]
    new = config.model.img_size or config.data.crops.global_size
    positions = f"positions {old // patch} x {old // patch}"
    if new != old:
        positions += f", interpolated to {new // patch} x {new // patch}"
    heads = "heads from the same file"
    if config.init_heads == "new":
        there = "the file's are left: init_heads=loaded takes them" if found.heads else "the file has none"
        heads = f"heads begin at random ({there})"
    line = f"begins with {_name_and_hash(facts['initialised_from'])}: backbone, {positions}; {heads}"
    frozen = config.optimizer.freeze_backbone_steps
    return [f"{line}; the backbone keeps still for {frozen} steps" if frozen else line]


def _notes(config: TrainConfig, path: Path, found: Recognised, told: Mapping[str, list[float]]) -> list[str]:
    """What a user should know of the file: licence, guesses, what is left out, settings that differ from the run's."""
    lines = [LICENCE] if is_published(path.name) else []
    lines += [f"note on {path}: {note}" for note in found.notes]
    if found.rasa is not None or "patch_map.weight" in found.backbone:
        lines.append(f"note on {path}: its RASA head is left out, training goes on without")
    for name, values in told.items():
        here = list(getattr(config.data.crops, name))
        if here != list(values):
            lines.append(
                f"WARNING: {path} was trained with {name} {values}, this run normalises with {here}; set "
                f"data.crops.{name}={_compact(values)} to agree"
            )
    for name in ("interpolate_offset", "interpolate_antialias"):
        here, there = getattr(config.model, name), found.config[name]
        if here != there:
            lines.append(
                f"WARNING: the network of {path} resamples positions with {name}={there}, this run with {here}; set "
                f"model.{name}={there} to agree"
            )
    return lines


def _compact(values: list[float]) -> str:
    """As the command line takes it."""
    return f"[{','.join(map(str, values))}]"
