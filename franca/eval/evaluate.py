"""One evaluation, from what was asked to the files that answer it."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from franca import __version__
from franca.config import read_config
from franca.devices import choose_device, choose_precision
from franca.distributed import is_main, on_main, place, process_group
from franca.eval import figures
from franca.eval.backbones import Backbone, load_backbone
from franca.eval.context import DIVISORS, Context, Engine, is_slice, slice_name, track
from franca.eval.datasets import OpenedSplit, open_split
from franca.eval.datasets.base import Role
from franca.eval.errors import EvalError
from franca.eval.protocol import Task
from franca.eval.registry import PROTOCOLS, Entry
from franca.eval.result import Origin, records_of, write_results
from franca.eval.store import FeatureStore

logger = logging.getLogger(__name__)
RESULTS = "results.json"
CHANNELS = 3  # of every data set


@dataclass(frozen=True)
class Question:
    """What to evaluate, on what, and how; the command line in one piece.

    model, rasa, num_heads, img_size: as `load_backbone`. data: "LAYOUT:PATH" or a path; train_data: where training
    images come from another place. slices: divisors of the width, (): all
    that there are. preset: whose settings; config, overrides: over them.
    output: folder of results; cache: of features, None: below the output. stored_as: fp16, bf16 or fp32.
    """

    protocol: str
    model: str
    data: str
    train_data: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    rasa: str | None = None
    num_heads: int | None = None
    img_size: int | None = None
    slices: tuple[int, ...] = (1,)
    preset: str = "paper"
    config: str | None = None
    overrides: Sequence[str] = field(default_factory=tuple)
    output: str = "results"
    cache: str | None = None
    stored_as: str = "fp16"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 64
    workers: int = 0


@dataclass(frozen=True)
class Answer:
    """What an evaluation left: scores, each with where it comes from, and its folder."""

    folder: Path
    records: list[dict[str, Any]]


def evaluate(question: Question) -> Answer:
    """Ask a protocol about a backbone, in all processes that were launched.

    Raises:
        EvalError, ConfigError: the question can't be asked so.
        DataError, CheckpointError, OSError: its files can't be read, or its results not written.
    """
    entry = PROTOCOLS[question.protocol]
    protocol = entry.load()
    config = configure(question)
    own = place()
    device = choose_device(question.device, own.local_rank if own and own.world_size > 1 else None)
    with process_group(device.type):
        backbone = load_backbone(question.model, question.rasa, question.num_heads, question.img_size).to(device)
        if backbone.channels != CHANNELS:
            raise EvalError(
                f"--model {question.model} looks at {backbone.channels} channels, data sets give {CHANNELS}"
            )
        _say_untrained(question.slices or DIVISORS, backbone)
        task = open_task(entry, question)
        precision = choose_precision(question.precision, device)
        origin = _origin(question, config, backbone, task, device, precision)
        folder = Path(question.output) / folder_name(origin, question)
        on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        engine = Engine(backbone, device, precision)
        store = FeatureStore(
            Path(question.cache or Path(question.output) / "features"),
            backbone.hash,
            engine.tokens,
            track,
            origin.precision,
            question.stored_as,
            question.batch_size,
            question.workers,
        )
        context = Context(engine, store, folder, question.batch_size, question.workers, question.slices)
        scores = list(protocol.run(context, task, config))
        records = records_of(origin, scores, store.left_out)
        if is_main():
            write_results(folder / RESULTS, asdict(origin), records)
            _draw(folder, origin, records)
    return Answer(folder, records)


def _say_untrained(divisors: Sequence[int], backbone: Backbone) -> None:
    """Which slices no head of the training read: they are scored all the same. Those that there aren't are refused."""
    trained = [round(1 / level) for level in backbone.levels]
    width = getattr(backbone.model, "embed_dim", None)
    if isinstance(width, int):
        divisors = [divisor for divisor in divisors if is_slice(width, divisor)]
    without = [slice_name(divisor) for divisor in divisors if divisor not in trained]
    if trained and without:
        levels = ", ".join(map(slice_name, sorted(trained)))
        logger.info("slices without a head of their own in training (levels %s): %s", levels, ", ".join(without))


def _draw(folder: Path, origin: Origin, records: list[dict[str, Any]]) -> None:
    """Scores by slice, where several were asked for and matplotlib is installed."""
    if not figures.can_draw():
        return
    from franca.eval.figures.slice_curves import slice_figure

    title = f"{origin.protocol}, {figures.short_name(origin.model)} on {origin.data} {origin.split}"
    slice_figure(folder / "scores_by_slice.png", records, title)


def open_task(protocol: Entry, question: Question) -> Task:
    """The images that the protocol learns from and those it is scored on. Raises EvalError where they are the same."""
    train, test = None, _open("--data", question.data, question.test_split, "test", protocol.kind)
    if protocol.trains:
        option, data = ("--train-data", question.train_data) if question.train_data else ("--data", question.data)
        train = _open(option, data, question.train_split, "train", protocol.kind)
        shared = len(_places(train) & _places(test))
        if shared or train.hash == test.hash:
            raise EvalError(
                f"{protocol.name} would be scored on images that it learns from: {shared or len(test.source)} of split "
                f"{test.split} are in split {train.split} too. Name others with --train-split, --test-split or "
                "--train-data"
            )
    return Task(train, test)


def _open(option: str, data: str, split: str | None, role: Role, kind: str) -> OpenedSplit:
    """As `open_split`; errors name the option."""
    try:
        return open_split(data, split, role, kind)
    except EvalError as error:
        raise EvalError(f"{option} {error}") from error


def _places(split: OpenedSplit) -> set[str]:
    """Where the images of a split lie; their names alone where they are no files of their own."""
    root = str(getattr(split.source, "root", split.name))
    return {os.path.join(root, split.source.name(index)) for index in range(len(split.source))}


def folder_name(origin: Origin, question: Question) -> str:
    """``knn-folder-val-<model>-<hash of everything that was asked>``: another question has another folder.

    What changes no trained classifier stays out of the hash: where it is computed, and a protocol's options that only
    say what else is scored (``SCORING`` of its configuration).
    """
    asked = {name: value for name, value in asdict(origin).items() if name not in ("versions", "device", "path")}
    scoring = getattr(PROTOCOLS[origin.protocol].load().config, "SCORING", ())
    asked["options"] = {name: value for name, value in origin.options.items() if name not in scoring}
    asked["slices"] = question.slices
    kind, _, name = origin.model.rpartition(":")
    path = Path(name)
    short = f"{path.parent.name}_{path.stem}" if path.suffix == ".pth" else path.name
    model = re.sub(r"[^A-Za-z0-9]+", "_", f"{kind}_{short}" + ("_rasa" if origin.rasa else "")).strip("_")
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{origin.protocol}-{origin.data}-{origin.split}-{model}-{digest}"


def configure(question: Question) -> Any:
    """The protocol's settings: those of the preset, with the question's over them. Raises EvalError, ConfigError."""
    protocol = PROTOCOLS[question.protocol].load()
    presets = {"paper": {}, **protocol.presets}
    if question.preset not in presets:
        raise EvalError(f"--preset {question.preset}: {question.protocol} has {', '.join(presets)}")
    return read_config(protocol.config, question.config, list(question.overrides), presets[question.preset])


def _origin(
    question: Question,
    config: Any,
    backbone: Backbone,
    task: Task,
    device: torch.device,
    precision: torch.dtype | None,
) -> Origin:
    changed = "+" if question.config or question.overrides else ""
    return Origin(
        protocol=question.protocol,
        preset=question.preset + changed,
        options=asdict(config),
        model=question.model,
        model_hash=backbone.hash,
        rasa=question.rasa or "",
        img_size=question.img_size,
        num_heads=question.num_heads,
        stored_as=question.stored_as,
        path=question.data,
        images=len(task.test.source),
        **_told("train_", task.train),
        **_told("", task.test),
        precision=str(precision or torch.float32).removeprefix("torch."),
        device=device.type,
        versions={"franca": __version__, "torch": torch.__version__},
    )


def _told(prefix: str, split: OpenedSplit | None) -> dict[str, str]:
    names = ("data", "split", "data_hash") if not prefix else ("train_data", "train_split", "train_hash")
    values = (split.name, split.split, split.hash) if split else ("", "", "")
    return dict(zip(names, values, strict=True))
