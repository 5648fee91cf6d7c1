"""What `python -m franca.launch` does once its arguments are read."""

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


def run(options: argparse.Namespace) -> int:
    """Check, submit or start; returns the exit status."""
    try:
        return launch(options, load_config(options.config, options.overrides))
    except (ConfigError, LaunchError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        print("error: SLURM jobs need submitit: pip install 'franca[slurm]' (--local needs nothing)", file=sys.stderr)
    return 2


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
