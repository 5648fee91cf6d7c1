"""What `python -m franca.train` does once its arguments are read: train, check, or say what a run will cost."""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from franca.config import ConfigError, dump_config
from franca.data.errors import DataError
from franca.data.sources import SOURCES, Source
from franca.data.sources.folder import ImageFolder
from franca.devices import choose_device, choose_precision
from franca.distributed import on_main, place, process_group
from franca.eval.online import OnlineKNN
from franca.eval.parts import split_in_two
from franca.hub.checkpoint import CheckpointError
from franca.train.build import build_pair, refused_as
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig, load_config
from franca.train.estimate import UTILISATION, estimate, report
from franca.train.initialise import preview
from franca.train.recovery import NonFiniteLoss
from franca.train.stopping import Interrupted
from franca.train.trackers import MissingTracker, TrackerRefused
from franca.train.trainer import Evaluate, Trainer
from franca.train.watch import Watch


def run(options: argparse.Namespace) -> int:
    """As asked; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = load_config(options.config, options.overrides)
        if options.dry_run:
            dry_run(config)
        elif options.estimate:
            utilisation = UTILISATION if options.utilisation is None else options.utilisation
            print(report(estimate(config, options.devices, options.device_name, utilisation)))
        else:
            train(config)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped at once; the same command continues from the last saved state", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ConfigError, CheckpointError, NonFiniteLoss, DataError, MissingTracker, TrackerRefused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_evaluation(config: TrainConfig) -> Evaluate | None:
    """Online k-NN as configured; None when it is switched off or the images carry no labels."""
    options = config.evaluation
    if options.every == 0:
        return None
    if options.train:
        if Path(options.train).resolve() == Path(options.test).resolve():
            logging.getLogger(__name__).warning(
                "WARNING: evaluation.train and evaluation.test are both %s: each image finds itself, k-NN says nothing",
                options.train,
            )
        memory, queries = (_labelled(config, key) for key in ("train", "test"))
    else:
        with refused_as("data"):
            images = config.data.build_source() if config.data.source in SOURCES else None
        if images is None or images.labels is None:
            logging.getLogger(__name__).warning("online k-NN is off: the images carry no labels (no class folders)")
            return None
        memory, queries = split_in_two(images)
    crops, device = config.data.crops, choose_device(config.device)
    with refused_as("evaluation"):
        return OnlineKNN(
            memory,
            queries,
            size=options.image_size,
            ks=tuple(options.ks),
            max_images=options.max_images,
            mean=crops.mean,
            std=crops.std,
            device=device,
            autocast=choose_precision(config.precision, device),
            workers=config.data.workers,
        )


def _labelled(config: TrainConfig, split: str) -> Source:
    """The images of evaluation.train or evaluation.test."""
    path: str = getattr(config.evaluation, split)
    try:
        with refused_as("evaluation"):
            return SOURCES.get(config.data.source, ImageFolder)(path, config.data.channels)
    except DataError as error:
        raise DataError(f"evaluation.{split}={str(error).removeprefix('data.path=')}") from error


def train(config: TrainConfig) -> None:
    """The run itself, in a process group where several processes were launched."""
    with refused_as("the launcher's variables"):
        own = place()
    if own and own.rank:
        for handler in logging.getLogger().handlers:  # rank 0 says it; each rank's own log gets it all
            handler.setLevel(logging.ERROR)
    with Watch(config, own) as watch:
        device = choose_device(config.device, own.local_rank if own and own.world_size > 1 else None)
        with process_group(device.type, config.parallel.timeout_minutes), watch.log.recording():
            built: list[Evaluate | None] = []
            on_main(lambda: built.append(build_evaluation(config)))
            Trainer(config, built[0] if built else None, watch).run()


def dry_run(config: TrainConfig) -> None:
    """Print the resolved configuration, what it builds, begins with and lacks, without reading an image."""
    with torch.device("meta"):  # shapes alone
        pair = build_pair(config)
    saved = CheckpointFolder(Path(config.output) / "checkpoints", config.checkpoint).latest()
    beginning = preview(config, pair.student, saved)
    parts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in pair.student.named_children()}
    print(dump_config(config))
    print("parameters: " + ", ".join(f"{name} {count:.2f} M" for name, count in parts.items()))
    batch = config.effective_batch
    print(f"effective batch {batch}, peak lr {config.optimizer.peak_lr(batch):.3e}, {config.steps * batch} images")
    for line in beginning:
        print(line)
    for key, path in _places(config):
        if not (path and Path(path).exists()):
            print(f"WARNING: {key}={path!r} is neither a folder nor a file here")


def _places(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Keys and paths of the folders that the run will read images from; shards may be a pattern, or far away."""
    data = {"data": config.data} | {f"data.parts[{number}]": part for number, part in enumerate(config.data.parts)}
    yield from ((f"{key}.path", part.path) for key, part in data.items() if part.source in ("folder", "tars"))
    if config.evaluation.every and config.evaluation.train:
        yield "evaluation.train", config.evaluation.train
        yield "evaluation.test", config.evaluation.test
