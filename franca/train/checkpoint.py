"""Saved states of a run: whole or absent, found again by the same command, the newest readable one first.

A state is written by ``torch.distributed.checkpoint`` into a hidden folder, listed in ``manifest.json`` with the size
of every file, and only then renamed to ``step_0001000``: a kill at any moment leaves the earlier states untouched.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from franca.hub.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass
class CheckpointConfig:
    """When states are saved and which are kept. The first and last of a run's saves are no exception."""

    every: int = 1000  # steps
    keep_last: int = 2  # newest states kept
    keep_every: int = 0  # steps: states at multiples of this are kept for good; 0: none

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep_last < 1 or self.keep_every < 0:
            raise ValueError(
                f"checkpoint.every={self.every} and keep_last={self.keep_last} must be at least 1, "
                f"keep_every={self.keep_every} at least 0"
            )
        if self.keep_every % self.every:
            raise ValueError(
                f"checkpoint.keep_every={self.keep_every} must be a multiple of checkpoint.every={self.every}: "
                "only saved states can be kept"
            )


class CheckpointFolder:
    """The ``checkpoints/`` folder of a run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    def save(self, step: int, state: dict[str, Any], write_extra: Callable[[Path], None]) -> Path:
        """Write ``state`` (nested dictionary of tensors) as ``step_<step>`` and drop what need not be kept.

        ``write_extra(folder)`` adds files of its own (the teacher) before the state becomes visible.

        Raises:
            CheckpointError: the disk is full or can't be written; earlier states are untouched.
        """
        target = self.folder / f"step_{step:07d}"
        unfinished = self.folder / f".{target.name}.unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            with _single_process():
                dcp.save(state, checkpoint_id=unfinished)
            write_extra(unfinished)
            _write_manifest(unfinished, step)
            if target.exists():
                shutil.rmtree(target)
            os.replace(unfinished, target)
            _sync(self.folder)
        except (OSError, dcp.CheckpointException, RuntimeError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = _root_cause(error)
            raise CheckpointError(
                f"could not save step {step} to {target}: {reason}; earlier states are kept"
            ) from error
        self._prune()
        return target

    def latest(self) -> Path | None:
        """The newest state whose files are all there in full; damaged ones are passed over with a warning."""
        for path in reversed(self._states()):
            problem = _problem(path)
            if problem is None:
                return path
            logger.warning("passing over checkpoint %s: %s", path, problem)
        return None

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Fill the tensors of ``state`` in place from a saved state.

        Raises:
            CheckpointError: the state was saved by a run of another architecture.
        """
        try:
            with _single_process():
                dcp.load(state, checkpoint_id=path)
        except (dcp.CheckpointException, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {path} doesn't fit this configuration ({_root_cause(error)}); "
                "use the configuration it was made with, or another output folder"
            ) from error

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))

    def _prune(self) -> None:
        for path in self._states()[: -self.config.keep_last]:
            step = int(path.name.removeprefix("step_"))
            if not self.config.keep_every or step % self.config.keep_every:
                shutil.rmtree(path)


def step_of(path: Path) -> int:
    """Optimizer steps done when the state at ``path`` was saved."""
    return int(json.loads((path / MANIFEST).read_text())["step"])


def _write_manifest(folder: Path, step: int) -> None:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": sizes}, indent=1))
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _problem(path: Path) -> str | None:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest can't be read ({error})"
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut off"
    return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _root_cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


@contextmanager
def _single_process() -> Iterator[None]:
    """Silence the note that no process group is there: one process is an ordinary case here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
