"""The console script `franca COMMAND …`: the same as `python -m MODULE …`, by the table below."""

import difflib
import runpy
import sys
from typing import NamedTuple

from franca import __version__
from franca.openmp import sleep_while_waiting


class Command(NamedTuple):
    module: str
    summary: str


COMMANDS = {
    "train": Command("franca.train", "pretrain a model on a folder of images"),
    "launch": Command("franca.launch", "train on a SLURM cluster, or in several processes on this machine"),
    "eval": Command("franca.eval", "evaluate a frozen backbone: classification, dense tasks, pictures"),
    "reproduce": Command("franca.reproduce", "run a recipe again, and compare it with its recorded curve"),
    "rasa": Command("rasa.train", "remove position from patch features (RASA)"),
    "publish": Command("franca.publish", "make a training run into a release folder"),
    "prepare": Command("franca.data.preparation", "prepare a large set of images from the web (LAION)"),
    "info": Command("franca.hub.info", "say what a checkpoint is"),
    "convert": Command("franca.hub.convert", "write a checkpoint in another layout, or for another library"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = (
        f"  {name:<{width}}   {command.summary}  (python -m {command.module})" for name, command in COMMANDS.items()
    )
    return "\n".join(
        [
            "usage: franca COMMAND [arguments]",
            "",
            *rows,
            "",
            "franca COMMAND --help explains a command, franca --version prints the version.",
        ]
    )


def main() -> None:
    """Run the command that sys.argv names. Exits with status 2 and the nearest name when there is no such command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"franca {__version__}")
    elif name in COMMANDS:
        sys.argv[1:] = arguments
        sleep_while_waiting()
        called = {"PROG": f"franca {name}"}  # how its usage names it
        runpy.run_module(COMMANDS[name].module, init_globals=called, run_name="__main__", alter_sys=True)
    else:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        print(f"franca: no command {name!r}{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
