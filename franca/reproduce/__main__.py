"""Command line: ``python -m franca.reproduce [NAME] [key=value …]``.

Only what arguments need stands here, so that help and errors don't wait for torch; the rest is
`franca.reproduce.command`.
"""

import argparse
import sys

from franca.openmp import sleep_while_waiting

PROG: str = globals().get("PROG", "python -m franca.reproduce")  # `franca reproduce` gives its own name
EPILOG = f"""\
examples:
  {PROG}                                     which recipes have a recorded curve
  {PROG} quickstart                          run it again, and compare
  {PROG} quickstart --until 60               its beginning alone, with the same schedules
  {PROG} quickstart seed=1 output=runs/again
  {PROG} quickstart --record 0,1,2 --force   record it anew
  {PROG} mine.yaml --record 0,1,2            record a recipe of your own

Each recorded point is compared as soon as the run reaches it. At the end: a table, a verdict, OUTPUT/reproduce.json and
a picture, OUTPUT/reproduce.png. The same command continues a run that was stopped, also without --until.
Exit status: 0 reproduced, 1 differs, 2 error, 128 + n stopped by signal n.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Run a recipe again, and compare its curve with the recorded one: does it learn here as it did "
        "there?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="of configs/recipes, or a YAML file's path")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="seed, output, data.path and the like")
    parser.add_argument("--until", type=int, metavar="STEP", help="compare up to this step, and stop there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and compared, then stop")
    recording = parser.add_argument_group("to record a curve")
    recording.add_argument("--record", default="", metavar="SEEDS", help="run these seeds, such as 0,1,2")
    recording.add_argument("--force", action="store_true", help="replace the record that there is")
    recording.add_argument(
        "--tolerance", action="append", default=[], metavar="QUANTITY=VALUE", help="in place of the seeds' spread"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    sleep_while_waiting()
    from franca.reproduce.command import run  # brings torch

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
