"""Command line: ``python -m franca.launch --nodes N --gpus-per-node N … --config FILE [key=value …]``."""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

import torch

from franca.config import ConfigError
from franca.hub.checkpoint import CheckpointError
from franca.launch.local import LocalRun
from franca.launch.resources import JobConfig, LaunchError
from franca.train.build import build_pair, claim_run_folder
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig, load_config
from franca.train.initialise import preview

EPILOG = """\
examples:
  python -m franca.launch --nodes 4 --gpus-per-node 8 --partition gpu --time 20:00:00 \\
      --config configs/pretrain/vitb14_in21k.yaml data.path=/data/imagenet21k output=runs/vitb14
  python -m franca.launch --local --gpus-per-node 8 --follow --config configs/pretrain/vitb14_in21k.yaml output=runs/b
  python -m franca.launch --time 1:00:00 --dry-run --config configs/recipes/quickstart.yaml

A job that is preempted, or comes near its time limit, saves its state and goes back into the queue by itself. One that
was cancelled or has failed does not: the same command submits it again, and it continues. The output folder must be
one that all nodes see. Each process writes its own log in OUTPUT/jobs/JOB/.

With --local the processes run on this machine, without SLURM, until they end: Ctrl-C and the time limit save the state,
and the same command continues.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m franca.launch",
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for franca.train")
    return parser.parse_intermixed_args(arguments)


def job_config(options: argparse.Namespace) -> JobConfig:
    """The resources asked for. Raises LaunchError when they don't make a job."""
    if options.local and options.nodes > 1:
        raise LaunchError(f"--nodes {options.nodes} with --local: this machine is one node")
    if not options.local and not options.time:
        raise LaunchError("--time is missing: how long a stretch may run before it is requeued, such as 20:00:00")
    unclear = [text for text in options.sbatch if "=" not in text or text.startswith("-")]
    if unclear:
        raise LaunchError(f"--sbatch {unclear[0]!r} is not of the form OPTION=VALUE, such as mem=0 or exclusive=user")
    given = {name: value for name, value in vars(options).items() if name in JobConfig.__dataclass_fields__}
    given["sbatch"] = dict(text.split("=", 1) for text in options.sbatch)
    return JobConfig(**given | {"setup": tuple(options.setup)})


def run_local(options: argparse.Namespace, job: JobConfig, arguments: list[str], output: Path) -> int:
    """Train here; returns the exit status."""
    run = LocalRun(arguments, job.processes, output / "jobs" / "local", job.minutes if job.time else None)
    print(f"log of the first process: {run.logs[0]}", file=sys.stderr)
    return run.run(options.follow)


def run_on_slurm(options: argparse.Namespace, job: JobConfig, arguments: list[str], output: Path) -> int:
    """Submit the run and say where to look; returns the exit status."""
    from franca.launch import slurm

    paths = slurm.submit(job, arguments, output)
    print(f"job {paths.job_id}; log of the first process: {paths.stdout}")
    print(f"squeue -j {paths.job_id} shows its state, scancel {paths.job_id} stops it with its state saved", flush=True)
    try:
        return slurm.follow(paths) if options.follow else 0
    except KeyboardInterrupt:
        print(f"\njob {paths.job_id} goes on; scancel {paths.job_id} stops it", file=sys.stderr)
        return 130


def sbatch_file(job: JobConfig, output: Path) -> str:
    """What would be submitted."""
    from franca.launch import slurm

    return slurm.executor(job, output).sbatch_file()


def require_cluster(options: argparse.Namespace, job: JobConfig, output: Path) -> None:
    """Raises LaunchError when a job can't be submitted from here, or can't write where it should."""
    from franca.launch import slurm

    slurm.require_sbatch()
    if not options.shared:
        slurm.require_shared(output, job.partition)


def beginning(config: TrainConfig) -> list[str]:
    """What the run begins with, and what doesn't fit, said here rather than after hours in a queue.

    A file that this machine doesn't see may be there for the nodes: it is only warned of.
    """
    if not config.init_from:
        return []
    with torch.device("meta"):  # shapes alone
        pair = build_pair(config)
    saved = CheckpointFolder(Path(config.output) / "checkpoints", config.checkpoint).latest()
    try:
        return preview(config, pair.student, saved)
    except ConfigError as error:
        if Path(config.init_from).exists():
            raise
        return [f"WARNING: not seen from this machine: {error}"]


def launch(options: argparse.Namespace, config: TrainConfig) -> int:
    """Check, claim the run folder, and start."""
    job, output = job_config(options), Path(config.output).resolve()
    config = config.for_ranks(job.processes)
    # The recorded configuration, not the file that was given: that one may change while the job waits in the queue.
    arguments = ["--config", str(output / "config.yaml")]
    if options.dry_run:
        print("" if options.local else sbatch_file(job, output))
        print(f"# each process: {shlex.join(['python', '-m', 'franca.train', *arguments])}")
    elif not options.local:
        require_cluster(options, job, output)
    for line in beginning(config):
        print(line, file=sys.stderr)
    place = "this machine" if options.local else f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
    print(f"processes: {job.processes} on {place}; {config.effective_batch} images a step", file=sys.stderr)
    if options.dry_run:
        return 0
    claimed_before = (output / "config.yaml").exists()
    claim_run_folder(config)
    try:
        return (run_local if options.local else run_on_slurm)(options, job, arguments, output)
    except LaunchError:
        if not claimed_before:  # no run came of it: the folder is free for a corrected command
            shutil.rmtree(output)
        raise


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        return launch(options, load_config(options.config, options.overrides))
    except (ConfigError, LaunchError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        print("error: SLURM jobs need submitit: pip install 'franca[slurm]' (--local needs nothing)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
