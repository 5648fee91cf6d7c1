"""Commands of the project in processes of their own that needn't import torch: they are forked from one that has.

A process is what the shell would have started: its own working folder, environment, arguments, streams and exit status.
"""

import multiprocessing
import os
import runpy
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "franca.train.command",
    "franca.eval.command",
    "franca.eval.registry",
    "rasa.run",
    "torch.distributed.fsdp",
]
SHELL = set("|<>;$`*?~#()\\")  # what only a shell understands, unless it is quoted


@dataclass(frozen=True)
class Command:
    """A module of the project that is run, and its arguments."""

    module: str
    arguments: list[str]


def commands_of(line: str, bin_folder: Path) -> list[Command] | None:
    """What a line of shell runs one after another (&&); None where that isn't modules of the project alone."""
    found = [_command(part, bin_folder) for part in line.split(" && ")]
    known = [command for command in found if command is not None]
    return known if len(known) == len(found) else None


def _command(text: str, bin_folder: Path) -> Command | None:
    words = shlex.split(text)
    if SHELL & {letter for word in shlex.split(text, posix=False) if word[0] not in "'\"" for letter in word}:
        return None
    if words[0] == str(bin_folder / "franca"):
        return Command("franca", words[1:])
    if words[:2] == [str(bin_folder / "python"), "-m"] and words[2].split(".")[0] in ("franca", "rasa"):
        return Command(words[2], words[3:])
    return None


def run(command: Command, folder: Path, environment: Mapping[str, str], log: Path, timeout: float) -> int:
    """Run a command in that folder; what it prints is appended to ``log``. Returns its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_enter, args=(command, str(folder), dict(environment), str(log)))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _enter(command: Command, folder: str, environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # read at the start of a process alone
    sys.argv = [command.module, *command.arguments]
    sys.path.insert(0, folder)
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
