"""Command line: ``python -m franca.publish RUN OUTPUT``.

Only what arguments need stands here, so that help and errors don't wait for torch; the rest is
`franca.publish.command`.
"""

import argparse
import sys
from pathlib import Path

PROG: str = globals().get("PROG", "python -m franca.publish")  # `franca publish` gives its own name
EPILOG = f"""\
A release holds teacher.pth, config.yaml, metrics.jsonl, a model card (README.md) filled from the run, manifest.json and
SHA256SUMS; with --rasa teacher_rasa.pth; in checkpoints/ the teachers of other steps, and with --with-state all that a
run needs to go on. Everything is read back before the folder gets its name. Paths of this machine are left out.

examples:
  {PROG} runs/vitb14 releases/vitb14 --data "ImageNet-21K" --licence "CC BY-NC 4.0"
  {PROG} runs/vitb14 releases/vitb14 --rasa runs/rasa --steps last --with-state
  {PROG} runs/vitb14 releases/early --steps 100000,200000

Large files are hard links to those of the run where both lie on one disk: they take no room, and stay when the run is
deleted. A run may be published while it trains: its last complete checkpoint is taken.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Make a training run into a folder that others can use, check and continue from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="output folder of franca.train")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write")
    parser.add_argument("--rasa", metavar="RASA_RUN", type=Path, help="output folder of rasa.train, for this teacher")
    parser.add_argument("--with-state", action="store_true", help="whole training state of each chosen step")
    parser.add_argument(
        "--steps",
        default="all",
        metavar="all|last|N,N",
        help="the newest of them is the release (default all: those that checkpoint.keep_every kept, and the last)",
    )
    parser.add_argument("--licence", "--license", default="", metavar="TEXT", help="for the model card")
    parser.add_argument("--name", default="", help="of the model (default: the name of the run's folder)")
    parser.add_argument("--data", default="", metavar="NAME", help="of the data (default: the name of its folder)")
    parser.add_argument("--force", action="store_true", help="replace a release that is there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = parse_arguments(arguments)
    from franca.publish.command import run  # brings torch

    return run(given)


if __name__ == "__main__":
    sys.exit(main())
