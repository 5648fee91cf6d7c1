"""Command line: ``python -m franca.train --config FILE [key=value …]``.

Only what arguments need stands here, so that help and errors don't wait for torch; the rest is `franca.train.command`.
"""

import argparse
import sys

from franca.openmp import sleep_while_waiting

PROG: str = globals().get("PROG", "python -m franca.train")  # `franca train` gives its own name
EPILOG = f"""\
examples:
  {PROG} --config configs/recipes/quickstart.yaml
  {PROG} --config configs/pretrain/vitb14_in21k.yaml data.path=/data/images output=runs/mine
  {PROG} --config configs/recipes/quickstart.yaml steps=500 optimizer.lr=3e-4 --dry-run
  {PROG} --config configs/recipes/continue_vitb14.yaml data.path=/data/images output=runs/more
  torchrun --nproc-per-node 8 -m franca.train --config configs/pretrain/vitl14_in21k.yaml data.path=/data/images

The same command continues a run that was stopped, at any moment and by any means.
--dry-run prints every key with its value, --estimate what the run will cost; training.md explains them.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Pretrain a vision transformer on images without labels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that differs from the defaults; see configs/")
    parser.add_argument("--dry-run", action="store_true", help="check and print the resolved configuration, then stop")
    parser.add_argument("--estimate", action="store_true", help="print what the run will cost, then stop")
    asked = parser.add_argument_group("with --estimate")
    asked.add_argument("--devices", type=int, default=0, metavar="N", help="one process each; world_size or 1")
    asked.add_argument("--device-name", default="", metavar="NAME", help="such as H100; this machine's")
    asked.add_argument("--utilisation", type=float, metavar="SHARE", help="of the device's peak; as such runs reach")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="overrides, such as steps=500 model.depth=6"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    sleep_while_waiting()
    from franca.train.command import run  # brings torch

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
