"""Saved states of a run: whole or absent, found again by the same command, the newest readable one first.

A state is written by ``torch.distributed.checkpoint`` into a hidden folder, listed in ``manifest.json`` with the size
of every file, and only then renamed to ``step_0001000``: a kill at any moment leaves the earlier states untouched.

Every rank writes its own files; rank 0 makes the folder, the manifest and the name, after all of them. Tensors are
saved as what they are, not as who held which part: any number of ranks reads them.
"""

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from franca.distributed import cpu_group, is_main, on_main
from franca.files import sync
from franca.hub.checkpoint import CheckpointError

# One process is an ordinary case here. For good, because a save in the background meets it in a thread of its own.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
ROWS_SHOWN = 8


@dataclass
class CheckpointConfig:
    """When states are saved and which are kept. The end of a run, and a signal to stop, save as well."""

    every: int = 1000  # steps
    keep_last: int = 2  # newest states kept
    keep_every: int = 0  # steps: states at multiples of this are kept for good; 0: none
    asynchronous: bool = True  # write while training goes on, from a copy in the CPU's memory

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


UseFolder = Callable[[Path], None]


class CheckpointFolder:
    """The ``checkpoints/`` folder of a run. With several ranks, all call the methods that save and load, together."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self._group = cpu_group()  # of its own: a save in the background must not mix with what training sends
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], write_extra: UseFolder, announce: UseFolder | None = None) -> Path:
        """Write ``state`` (nested dictionary of tensors) as ``step_<step>`` and drop what need not be kept.

        ``write_extra(folder)`` adds files of its own (the teacher) before the state becomes visible, ``announce(path)``
        is called once it is; both on rank 0 alone.

        Raises:
            CheckpointError: the disk is full or can't be written; earlier states are untouched.
        """
        unfinished = self._open(step)
        try:
            dcp.save(state, checkpoint_id=unfinished, process_group=self._group)
        except (OSError, dcp.CheckpointException, RuntimeError) as error:
            raise self._failed(step, error) from error
        on_main(lambda: self._complete(step, write_extra, announce))
        return self.folder / _name(step)

    def begin(self, step: int, state: dict[str, Any], write_extra: UseFolder, announce: UseFolder) -> None:
        """As :meth:`save`, but return once ``state`` is copied; :meth:`finish` says how it went. One at a time.

        Raises:
            CheckpointError: the folder can't be made, or an earlier save failed.
        """
        self.finish()
        unfinished = self._open(step)
        written = dcp.async_save(state, checkpoint_id=unfinished, process_group=self._group)
        assert isinstance(written, Future)
        self._running = self._background.submit(self._complete_later, step, written, write_extra, announce)

    def finish(self) -> None:
        """Wait for the save in the background, if there is one. Raises CheckpointError, on all ranks, if it failed."""
        running, self._running = self._running, None
        if running is None:
            return
        error = running.exception()
        on_main(lambda: _raise(error))
        _raise(error)

    def settle(self) -> None:
        """Wait for the save in the background, however it ends, without the other ranks."""
        if self._running is not None:
            self._running.exception()

    def _open(self, step: int) -> Path:
        """A new hidden folder for the state of ``step``."""
        unfinished = self.folder / f".{_name(step)}{UNFINISHED}"

        def make() -> None:
            try:
                self._clear_unfinished()
                unfinished.mkdir(parents=True)
            except OSError as error:
                raise self._failed(step, error) from error

        on_main(make)
        return unfinished

    def _complete_later(self, step: int, written: Future[Any], write_extra: UseFolder, announce: UseFolder) -> None:
        """Rank 0's part once every rank has written: torch's coordinator, rank 0, ends last."""
        try:
            written.result()
        except (OSError, dcp.CheckpointException, RuntimeError) as error:
            raise self._failed(step, error) from error
        if is_main():
            self._complete(step, write_extra, announce)

    def _complete(self, step: int, write_extra: UseFolder, announce: UseFolder | None) -> None:
        """Add the other files and the manifest, give the folder its name, drop what need not be kept."""
        target = self.folder / _name(step)
        unfinished = self.folder / f".{_name(step)}{UNFINISHED}"
        try:
            write_extra(unfinished)
            _write_manifest(unfinished, step)
            if target.exists():  # damaged, else the run would have continued from it
                shutil.rmtree(target)
            os.replace(unfinished, target)
            sync(self.folder)
            if announce is not None:
                announce(target)
        except (OSError, RuntimeError) as error:
            raise self._failed(step, error) from error
        self._prune(step)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        """The error to raise; what was written of the state is gone."""
        if is_main():
            shutil.rmtree(self.folder / f".{_name(step)}{UNFINISHED}", ignore_errors=True)
        return CheckpointError(
            f"could not save step {step} to {self.folder / _name(step)}: {_root_cause(error)}; earlier states are kept"
        )

    def latest(self) -> Path | None:
        """The newest state whose files are all there in full; damaged ones are passed over with a warning."""
        for _, path in reversed(self._states()):
            problem = _problem(path)
            if problem is None:
                return path
            logger.warning("passing over checkpoint %s: %s", path, problem)
        return None

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Fill the tensors of ``state`` in place from a saved state.

        Raises:
            CheckpointError: the state can't be read, or was saved by a run of another architecture; then ``state`` is
                as it was.
        """
        try:
            saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
            shapes = {name: tuple(entry.size) for name, entry in saved.items() if hasattr(entry, "size")}
            _require_same_tensors(path, shapes, {name: tuple(t.shape) for name, t in leaves(state).items()})
            dcp.load(state, checkpoint_id=path, process_group=self._group)
        except CheckpointError:
            raise
        except (Exception, dcp.CheckpointException) as error:  # unpickling raises whatever the damage makes of it
            raise CheckpointError(
                f"checkpoint {path} can't be read ({_root_cause(error)}); remove that folder to continue from the "
                "state before it"
            ) from error

    def _states(self) -> list[tuple[int, Path]]:
        """(step, folder) of every state, whole or not, oldest first; other files in the folder are left alone."""
        named = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in self.folder.glob("step_*")]
        return sorted((int(match[1]), path) for match, path in named if match)

    def _prune(self, newest: int) -> None:
        """Keep the last ``keep_last`` whole states up to step ``newest`` and those at multiples of ``keep_every``.

        Damaged states count as nothing, and those after ``newest`` are left: the run will write them again.
        """
        states = [(step, path) for step, path in self._states() if step <= newest]
        whole = [step for step, path in states if _problem(path) is None]
        kept = set(whole[-self.config.keep_last :])
        if self.config.keep_every:
            kept |= {step for step in whole if step % self.config.keep_every == 0}
        for step, path in states:
            if step not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _clear_unfinished(self) -> None:
        for path in self.folder.glob(f".step_*{UNFINISHED}"):
            shutil.rmtree(path, ignore_errors=True)


def _name(step: int) -> str:
    return f"step_{step:07d}"


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A nested dictionary of tensors as one: {dotted name: tensor}."""
    flat: dict[str, Tensor] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= {name: value} if isinstance(value, Tensor) else leaves(value, f"{name}.")
    return flat


def _require_same_tensors(path: Path, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    differing = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
    if differing:
        rows = [f"  {name}: there {saved.get(name, 'absent')}, here {wanted.get(name, 'absent')}" for name in differing]
        more = [f"  and {len(rows) - ROWS_SHOWN} more"] if len(rows) > ROWS_SHOWN else []
        raise CheckpointError(
            f"checkpoint {path} is of another architecture than this configuration; shapes differ in\n"
            + "\n".join(rows[:ROWS_SHOWN] + more)
            + "\nuse the configuration it was made with, or another output folder"
        )


def _write_manifest(folder: Path, step: int) -> None:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": sizes}, indent=1))
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def _problem(path: Path) -> str | None:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest can't be read ({error})"
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut off"
    return None


def _root_cause(error: BaseException) -> str:
    """The system's own words where there are some: torch's writer hides a full disk behind an error of its own."""
    failures = getattr(error, "failures", None)
    first = next(iter(failures.values()))[0] if failures else error
    link: BaseException | None = first
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    words = str(link or first).strip().splitlines()
    return words[-1] if words else type(first).__name__
