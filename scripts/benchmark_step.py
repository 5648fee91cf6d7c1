"""The trainer's own step on synthetic batches: images per second, work, memory, and where the time goes.

    python scripts/benchmark_step.py --config configs/pretrain/vitb14_in21k.yaml [key=value …]
        [--profile] [--against eager] [--objective-only ROWS] [--trace FILE] [--output FILE]

One process on one device. Pixels are random; shapes, masks and schedules are those of the configuration. The first step
(with what torch.compile does) and the warm-up are apart from what is measured: blocks of steps, median (least-largest).
On a CPU fewer steps are taken by default; what is being measured is said on stderr. A quick look at a large network
there: --steps 1 --blocks 1 --warmup 0, and a small data.batch_size.
--profile adds the time of each part of a step, --against eager the same step with an objective in whole matrices, in
turns, and both objectives alone. Where the CPU is the device, ratios and parts are of the processor's seconds.
"""

import argparse
import sys
from pathlib import Path

from franca.openmp import sleep_while_waiting

OTHERS = ("eager", "heads-by-level", "heads-at-once")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this script."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="as for python -m franca.train; without it, the defaults (ViT-B/14)")
    add("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=32 parallel.compile=true")
    add("--device", metavar="NAME", help="auto, or any torch device (default: the configured one)")
    add("--steps", type=int, help="a block (default: 10, on a CPU 2)")
    add("--blocks", type=int, help="that are measured (default: 5, on a CPU 3)")
    add("--warmup", type=int, help="steps before, after the first ones (default: 5, on a CPU 1)")
    add("--files", action="store_true", help="batches of data.path by the project's loader, for real waiting")
    add("--profile", action="store_true", help="where the time goes, by part")
    add("--trace", type=Path, metavar="FILE", help="write one step as a Chrome trace")
    add("--against", choices=OTHERS, help="also the step with this part computed otherwise, in turns")
    add("--objective-only", type=int, metavar="ROWS", help="nothing but both objectives, with so many masked rows")
    add("--output", type=Path, metavar="FILE", help="write every number as JSON")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print the pages, write the file; returns the exit status."""
    options = parse_arguments(arguments)
    sleep_while_waiting()
    from measuring.report import run  # brings torch

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
