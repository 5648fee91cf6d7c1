"""How the networks of a run begin: at random, or with weights from any file that the hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from franca.train.compatibility import fitting_heads, require_same_network
from franca.train.config import TrainConfig
from franca.train.parallel import fill_whole

TEACHER = "teacher.pth"
EXAMPLE = "franca_vitb14@IN21K_224"
HASH_SHOWN = 12  # characters
KEPT = ("stage", "step", "images_seen")  # of the file's own description


@dataclass(frozen=True)
class Start:
    """What the networks of a run begin with, and where it comes from."""

    parts: dict[str, State]  # of an encoder -> all its tensors, on rank 0; a part that is not here begins at random
    facts: dict[str, Any]  # for teacher files: stage, initialised_from
    lines: list[str]  # for people

    def told(self) -> "Start":
        """Without the tensors."""
        return replace(self, parts={name: {} for name in self.parts})


def begin(config: TrainConfig, student: Encoder, saved: Path | None) -> Start:
    """What a run begins with: at random, with the file of ``init_from``, or with ``saved``, a state of its own.

    All ranks call it together; rank 0 alone reads, and has the tensors. Raises as :func:`read_start`.
    """
    read: list[Start] = []

    def choose() -> Start:
        read.append(choose_start(config, student, saved))
        return read[0].told()

    told = on_main(choose)
    return read[0] if read else told


def choose_start(config: TrainConfig, student: Encoder, saved: Path | None) -> Start:
    """As :func:`begin`, in this process."""
    if not config.init_from:
        return Start({}, {"stage": "pretrain"}, [])
    return read_start(config, student) if saved is None else recall_start(saved)


def recall_start(saved: Path) -> Start:
    """What the run of a saved state began with; the file that this was read from may be gone."""
    described = describe(saved / TEACHER)
    facts: dict[str, Any] = {name: described[name] for name in ("stage", "initialised_from") if name in described}
    return Start({}, facts, [f"began with {_name_and_hash(facts.get('initialised_from', {}))}"])


def fill(pair: StudentTeacher, start: Start) -> None:
    """Put the parts of ``start`` into both networks. All ranks must call."""
    for network in (pair.student, pair.teacher):
        for name, state in start.parts.items():
            fill_whole(network.get_submodule(name), state)


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
    parts = {"backbone": backbone} | heads
    facts = _facts(config, path, found, old)
    lines = [*_loaded(config, found, old, facts), *_notes(config, path, found, told_normalisation(path, content))]
    return Start(parts, facts, [*lines, *_advice(config)])


def preview(config: TrainConfig, student: Encoder, saved: Path | None) -> list[str]:
    """What a run would say of its beginning; nothing is fetched for it. Raises as :func:`read_start`."""
    published = None if Path(config.init_from).exists() else _published(config.init_from)
    if saved is None and published and not is_there(published.name):
        return [f"init_from={config.init_from}: {published.name} is fetched when the run starts"]
    return choose_start(config, student, saved).lines


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


def _advice(config: TrainConfig) -> list[str]:
    """Where new heads would teach a trained backbone, and where loaded ones would begin again."""
    frozen = config.optimizer.freeze_backbone_steps
    if config.init_heads == "new":
        words = "WARNING: the backbone learns from random heads from the first step on, and may forget; set"
        return [] if frozen else [f"{words} optimizer.freeze_backbone_steps, such as 1000, to let these learn first"]
    lines = []
    if config.teacher.temperature_warmup_steps:
        lines.append(
            f"note: the teacher's temperature begins at {config.teacher.warmup_temperature} again; heads that have "
            "learned go on with teacher.temperature_warmup_steps=0"
        )
    if config.optimizer.freeze_last_layer_steps:
        lines.append(
            f"note: loaded prototypes keep still for {config.optimizer.freeze_last_layer_steps} steps; "
            "optimizer.freeze_last_layer_steps=0 lets them learn at once"
        )
    return lines


def _compact(values: list[float]) -> str:
    """As the command line takes it."""
    return f"[{','.join(map(str, values))}]"
