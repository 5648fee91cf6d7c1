"""What a run was made with, so far as it can explain another curve: code, torch, device, precision, images."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import franca
from franca.data.mixture import Mixture
from franca.data.sources import Source
from franca.data.sources.folder import ImageFolder
from franca.data.sources.photographs import SamplePhotographs
from franca.data.sources.shards import Shards
from franca.devices import choose_device, choose_precision
from franca.peaks import name_of
from franca.train.build import build_source
from franca.train.config import TrainConfig

PACKAGE = Path(franca.__file__).resolve().parent
UNKNOWN = "unknown"  # of a run that another command began
OWN = "reproduce"  # the part that only watches a run
IMAGES = ("images", "images_hash")
# What a record holds of a run, besides its curve; the likeliest reasons of another curve first.
FACTS = (*IMAGES, "precision", "torch", "device", "commit")


def facts_of(config: TrainConfig) -> dict[str, Any]:
    """What a record holds of these; plain types. Raises DataError, ConfigError as the run itself would."""
    device = choose_device(config.device)
    number, digest = fingerprint(config)
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "device": device_words(device),
        "precision": "fp32" if choose_precision(config.precision, device) is None else "bf16",
        "images": number,
        "images_hash": digest,
    }


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs from the record, in words."""
    return [_difference(name, recorded, here) for name in FACTS if here[name] != recorded[name]]


def other_images(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In which way the images are known to be others, of number and of names and sizes."""
    known = [name for name in IMAGES if UNKNOWN not in (recorded[name], here[name])]
    return [_difference(name, recorded, here) for name in known if here[name] != recorded[name]]


def _difference(name: str, recorded: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    return f"{name}: {here[name]} here, {recorded[name]} recorded"


def code_hash() -> str:
    """Of all of the package that a run may execute, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if name.parts[0] != OWN:
            digest.update(f"{name.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def commit(clone: Path = PACKAGE.parent) -> str:
    """Of a clone, "-dirty" where files differ from it; where it is none, what FRANCA_COMMIT says."""
    stated = os.environ.get("FRANCA_COMMIT", "unknown")
    if not (clone / ".git").exists():
        return stated
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() or stated
    except (OSError, subprocess.TimeoutExpired):
        return stated


def device_words(device: torch.device) -> str:
    """Such as "CPU: AMD EPYC 9B14, 1 thread", or an accelerator's name."""
    if device.type != "cpu":
        return name_of(device)
    threads = torch.get_num_threads()
    return f"CPU: {_cpu_model()}, {threads} thread{'' if threads == 1 else 's'}"


def fingerprint(config: TrainConfig) -> tuple[int | None, str | None]:
    """Number of the training images, and 12 digits of a hash of their names and sizes.

    The size of a file is in bytes, that of a sample photograph in pixels; other sources count by name alone. Shards and
    mixtures, whose images nobody has numbered, give (None, None).
    """
    source = build_source(config)
    if isinstance(source, Shards | Mixture):
        return None, None
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.name(index)}\t{_size(source, index)}\n".encode(errors="surrogateescape"))
    return len(source), digest.hexdigest()[:12]


def _size(source: Source, index: int) -> str:
    if isinstance(source, ImageFolder):
        return str((source.root / source.name(index)).stat().st_size)
    return "x".join(map(str, source.load(index).shape[1:])) if isinstance(source, SamplePhotographs) else ""


def _cpu_model() -> str:
    """As the system calls it, where it does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unnamed")
