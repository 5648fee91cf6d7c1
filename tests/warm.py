"""Commands of the project in processes of their own that needn't import torch: they are forked from one that has.

A process is what the shell would have started: its own working folder, environment, arguments, streams and exit status.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

PRELOADED = [
    "franca.train.command",
    "franca.eval.command",
    "franca.eval.registry",
    "franca.eval.figures.gallery",
    "rasa.run",
    "torch.distributed.fsdp",
    "torch.distributed.run",
]
SHELL = set("|<>;$`*?~#()\\")  # what only a shell understands, unless it is quoted
TIMEOUT = 300.0  # seconds
ENDED = 10.0  # seconds that a process may take to end once it is killed


@dataclass(frozen=True)
class Command:
    """What Python is told to run, and its arguments: a module of the project or torch's launcher, or a script (.py)."""

    module: str
    arguments: list[str] = field(default_factory=list)

    def __call__(self) -> None:
        """Run it in this process, as the interpreter would."""
        sys.argv = [self.module, *self.arguments]
        if self.module.endswith(".py"):
            sys.path.insert(0, str(Path(self.module).resolve().parent))
            main = ModuleType("__main__")  # not by runpy, whose modules multiprocessing doesn't find again
            main.__file__ = str(Path(self.module).absolute())
            sys.modules["__main__"] = sys.modules["__mp_main__"] = main
            exec(compile(Path(main.__file__).read_bytes(), main.__file__, "exec"), vars(main))
        else:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def commands_of(line: str, bin_folder: Path) -> list[Command] | None:
    """What a line of shell runs one after another (&&); None where that isn't the project's own alone."""
    found = [_command(part, bin_folder) for part in line.split(" && ")]
    known = [command for command in found if command is not None]
    return known if len(known) == len(found) else None


def _command(text: str, bin_folder: Path) -> Command | None:
    words = shlex.split(text)
    if SHELL & {letter for word in shlex.split(text, posix=False) if word[0] not in "'\"" for letter in word}:
        return None
    if words[0] == str(bin_folder / "franca"):
        return Command("franca", words[1:])
    if words[0] == str(bin_folder / "torchrun"):
        return Command("torch.distributed.run", words[1:])
    if words[:2] == [str(bin_folder / "python"), "-m"] and words[2].split(".")[0] in ("franca", "rasa"):
        return Command(words[2], words[3:])
    if words[0] == str(bin_folder / "python") and words[1].startswith("scripts/"):
        return Command(words[1], words[2:])
    return None


def preload() -> None:
    """Say, before the first process is started, what all are forked from has imported."""
    multiprocessing.set_forkserver_preload(PRELOADED)


def start(
    work: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    stdout: Path,
    stderr: Path,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """A process that calls ``work`` in that folder; what it prints is appended to the files."""
    preload()
    context = multiprocessing.get_context("forkserver")
    given = dict(os.environ if environment is None else environment)
    process = context.Process(target=_enter, args=(work, arguments, str(folder), given, str(stdout), str(stderr)))
    process.start()
    return process


def wait(process: BaseProcess, timeout: float = TIMEOUT) -> int:
    """Its exit status; it is killed after so many seconds, or when the test is ended meanwhile."""
    try:
        process.join(timeout)
    finally:
        if process.is_alive():
            process.kill()
            process.join(ENDED)
    assert process.exitcode is not None, f"process {process.pid} can't be killed"
    return process.exitcode


def run(command: Command, folder: Path, environment: Mapping[str, str], log: Path, timeout: float = TIMEOUT) -> int:
    """Run a command in that folder; what it prints is appended to ``log``. Returns its exit status."""
    return wait(start(command, folder=folder, environment=environment, stdout=log, stderr=log), timeout)


def captured(
    work: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """``work`` to its end, with its status and what it printed; as ``subprocess.run`` has it."""
    with tempfile.TemporaryDirectory() as place:
        printed = {name: Path(place) / name for name in ("stdout", "stderr")}
        status = wait(start(work, *arguments, folder=folder, environment=environment, **printed), timeout)
        said = {name: file.read_text() if file.exists() else "" for name, file in printed.items()}
    return subprocess.CompletedProcess(work, status, **said)


def _enter(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: str,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in ((1, stdout), (2, stderr)):
        with open(file, "ab") as stream:
            os.dup2(stream.fileno(), number)
    multiprocessing.set_start_method(None, force=True)  # forkserver is the tests' choice, not the command's
    importlib.import_module("torch").set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))  # else read too early
    try:
        work(*arguments)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
