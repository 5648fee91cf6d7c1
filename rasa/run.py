"""A RASA run from its configuration to the files it leaves."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from franca.data.sources import Source
from franca.devices import choose_device, choose_precision
from franca.eval.protocols.position_moments import Moments
from franca.files import held
from rasa.config import RasaConfig
from rasa.crops import Crops, split
from rasa.errors import RasaError
from rasa.evidence import Evidence, gather, measure
from rasa.features import Engine
from rasa.fit import RASAFit, Round, check_size, head_of, run_rounds
from rasa.patches import collect
from rasa.progress import PassProgress
from rasa.run_folder import RunFolder
from rasa.solvers import ClosedFormSolver, GradientSolver, Solver

logger = logging.getLogger(__name__)

FEW_STEPS = 300  # in a round of the gradient solver


@dataclass(frozen=True)
class Task:
    """Everything a run works with."""

    config: RasaConfig
    engine: Engine
    source: Source
    fit: Crops
    held_out: Crops
    probe: Crops
    test: Crops

    @property
    def folder(self) -> Path:
        """Where the run's files go."""
        return Path(self.config.output).expanduser()


@dataclass(frozen=True)
class Result:
    """What a run found."""

    task: Task
    fit: RASAFit
    evidence: Evidence | None
    files: list[Path]


def run(config: RasaConfig) -> Result:
    """A whole RASA run, or the rest of one.

    Raises:
        ConfigError, RasaError, DataError, CheckpointError, OSError: with what is wrong and what to do.
    """
    device = choose_device(config.device)
    source = config.data.build_source()
    backbone = config.backbone.load()
    backbone.to(device)
    parts = split(source, config.data, config.seed, config.evidence.share)
    task = Task(
        config,
        Engine(backbone, device, choose_precision(config.precision, device)),
        source,
        **{name: Crops(source, numbers, config.data, config.seed) for name, numbers in vars(parts).items()},
    )
    task.engine.check(config.data.channels, config.data.size)
    task.folder.mkdir(parents=True, exist_ok=True)
    with held(task.folder):
        folder = RunFolder(config, task.engine, source)
        logger.info(
            "%s on %d images, crops of %d pixels; %d more images measure rounds, %d are set apart",
            *(backbone.name, len(parts.fit), config.data.size, len(parts.held_out), len(parts.probe + parts.test)),
        )
        fit = _fit(task, folder)
        logger.info("%s; %d dimensions removed", fit.stopped, 2 * len(fit.rounds))
        files = folder.save_result(fit)
        evidence = _evidence(task, fit)
        if evidence:
            folder.save_about(fit, evidence.numbers())
    return Result(task, fit, evidence, files)


def _fit(task: Task, folder: RunFolder) -> RASAFit:
    if folder.finished:
        made = folder.rounds[: task.config.rounds]
        reason = folder.stopped if len(made) < task.config.rounds else f"all {len(made)} rounds were made"
        return RASAFit(head_of([one.weight for one in made]), made, reason)

    def on_round(made: Round) -> None:
        folder.save_round(made)
        logger.info(
            "round %d: position error %.4f on held-out images (%.4f by chance), %.1f %% of it predicted; %.1f s",
            *(made.number, made.held_out_error, made.chance, 100 * made.predictable, made.seconds),
        )

    build = _closed_form if task.config.solver == "closed_form" else _gradient
    return run_rounds(build(task, folder), task.config.rounds, task.config.saturation, folder.rounds, on_round)


def _closed_form(task: Task, folder: RunFolder) -> Solver:
    moments = folder.load_moments()
    if moments is None:
        moments = _moments(task, task.fit, "images"), _moments(task, task.held_out, "held-out images")
        folder.save_moments(*moments)
    check_size(moments[0].crops, len(moments[0].cells), len(moments[0].shift))
    return ClosedFormSolver(*moments)


def _moments(task: Task, crops: Crops, what: str) -> Moments:
    moments: Moments | None = None
    with PassProgress(what, len(crops)) as progress:
        for grids in task.engine.batches(crops):
            moments = moments or Moments.like(grids)
            moments.add(grids)
            progress.add(len(grids))
    assert moments is not None
    return moments


def _gradient(task: Task, folder: RunFolder) -> Solver:
    patches = []
    for crops, what in ((task.fit, "images"), (task.held_out, "held-out images")):
        with PassProgress(what, len(crops)) as progress:
            file = folder.path / f"{what.replace(' ', '_')}.bin"
            patches.append(collect(task.engine, crops, task.config.cache, file, progress.add))
    fit, held_out = patches
    steps = task.config.gradient.epochs * fit.steps(task.config.gradient.batch_size)
    if steps < FEW_STEPS:
        logger.warning("a round has %d steps only (the paper's 670): it may find less position than there is", steps)
    check_size(len(task.fit), len(fit.positions), fit.width)
    return GradientSolver(fit, held_out, task.config.gradient, task.config.seed)


def _evidence(task: Task, fit: RASAFit) -> Evidence | None:
    options = task.config.evidence
    if options.crops == 0 or options.share == 0:
        return None
    logger.info("measuring before and after")
    started = time.perf_counter()
    probe, test = (gather(task.engine, crops, options.crops) for crops in (task.probe, task.test))
    try:
        evidence = measure(probe, test, fit.head, options.clusters, task.config.seed, task.engine.device)
    except RasaError as error:  # the head is there, and no worse for it
        logger.warning("%s", error)
        return None
    logger.info("measured in %.1f s", time.perf_counter() - started)
    return evidence
