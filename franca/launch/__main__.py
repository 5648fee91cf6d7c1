"""Command line: ``python -m franca.launch --nodes N --gpus-per-node N … --config FILE [key=value …]``.

Only what arguments need stands here, so that help and errors don't wait for torch; the rest is `franca.launch.command`.
"""

import argparse
import sys

PROG: str = globals().get("PROG", "python -m franca.launch")  # `franca launch` gives its own name
EPILOG = f"""\
examples:
  {PROG} --nodes 4 --gpus-per-node 8 --partition gpu --time 20:00:00 \\
      --config configs/pretrain/vitb14_in21k.yaml data.path=/data/imagenet21k output=runs/vitb14
  {PROG} --local --gpus-per-node 8 --follow --config configs/pretrain/vitb14_in21k.yaml output=runs/b
  {PROG} --time 1:00:00 --dry-run --config configs/recipes/quickstart.yaml

A job that is preempted, or comes near its time limit, saves its state and goes back into the queue by itself. One that
was cancelled or has failed does not: the same command submits it again, and it continues. The output folder must be
one that all nodes see. Each process writes its own log in OUTPUT/jobs/JOB/.

With --local the processes run on this machine, without SLURM, until they end: Ctrl-C, SIGTERM, the time limit and a
terminal that closes (SIGHUP) save the state, and the same command continues. Ctrl-C once more doesn't wait for that.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Train as a job of SLURM, or as several processes on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("where")
    where.add_argument("--local", action="store_true", help="processes on this machine instead of a SLURM job")
    where.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    where.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="devices of each; a process for each")
    where.add_argument(
        "--tasks-per-node", type=int, default=0, metavar="N", help="processes, where they aren't as many"
    )
    where.add_argument("--cpus-per-task", type=int, default=0, metavar="N", help="cores of each process")
    where.add_argument("--time", default="", help="limit of one stretch, such as 20:00:00 or 2-12 (2 days, 12 hours)")
    slurm = parser.add_argument_group("SLURM")
    for name in ("partition", "account", "qos", "constraint"):
        slurm.add_argument(f"--{name}", default="", metavar=name[0].upper(), help="as sbatch has it")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="any other, such as mem=0")
    slurm.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line to run first")
    slurm.add_argument(
        "--signal-before", type=int, default=300, metavar="S", help="seconds before the limit to save at (default 300)"
    )
    slurm.add_argument(
        "--requeues", type=int, default=100, metavar="N", help="time limits to go on after (default 100)"
    )
    slurm.add_argument("--shared", action="store_true", help="the output folder is on a disk that the nodes do see")
    parser.add_argument("--follow", action="store_true", help="show the first process's log until the end")
    parser.add_argument("--dry-run", action="store_true", help="check, print what would be submitted, and stop")
    parser.add_argument("--config", metavar="FILE", help="as for franca.train: a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="as for franca.train")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    from franca.launch.command import run  # brings torch

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
