"""A run as a SLURM job: what is submitted, where it may lie, and how it is followed."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from franca.launch.follow import Tail
from franca.launch.job import GONE, TrainingJob, job_state
from franca.launch.resources import JobConfig, LaunchError

ONE_MACHINE = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
POLL = 1.0  # seconds between two looks at the log
ASK_EVERY = 5  # looks between two questions to SLURM


class Executor(SlurmExecutor):
    """submitit's, which also describes a job where SLURM is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """Always available; ``submit`` asks for sbatch itself."""
        return 2

    def sbatch_file(self) -> str:
        """The file that would be submitted."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def executor(job: JobConfig, output: Path) -> Executor:
    """submitit's executor for such a job; its files go to ``output``/jobs/JOB."""
    made = Executor(output / "jobs" / "%j", max_num_timeout=job.requeues)
    optional: dict[str, Any] = {
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "gpus_per_node": job.gpus_per_node,
        "cpus_per_task": job.cpus_per_task,
    }
    srun = ["--kill-on-bad-exit=1"]  # when one process fails, the others would wait for it until the time limit
    if job.cpus_per_task:
        srun.append(f"--cpus-per-task={job.cpus_per_task}")  # srun no longer takes it over from sbatch
    made.update_parameters(
        job_name=f"franca-{output.name}",
        nodes=job.nodes,
        ntasks_per_node=job.processes_per_node,
        time=job.minutes,
        signal_delay_s=job.signal_before,
        stderr_to_stdout=True,
        setup=list(job.setup) or None,
        srun_args=srun,
        wckey=None,
        additional_parameters={"requeue": True, **job.sbatch},
        **{name: value for name, value in optional.items() if value},
    )
    return made


def submit(job: JobConfig, arguments: list[str], output: Path) -> JobPaths:
    """Submit ``arguments`` (of franca.train) as a job; returns where its files lie, and its number in ``job_id``.

    Raises LaunchError when there is no SLURM here, or it refuses the job.
    """
    require_sbatch()
    try:
        return executor(job, output).submit(TrainingJob(arguments)).paths
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f"sbatch refused the job: {error}") from error


def require_sbatch() -> None:
    """Raises LaunchError where SLURM is not installed."""
    if shutil.which("sbatch") is None:
        raise LaunchError(
            "no sbatch on this machine: run this on a login node of the cluster, use --local for processes on this "
            "machine, or --dry-run to see what would be submitted"
        )


def require_shared(folder: Path, partition: str) -> None:
    """Raises LaunchError when ``folder`` lies on a disk of this machine, and jobs may run on others."""
    command = ["sinfo", "--noheader", "--Node", "--format=%N", *([f"--partition={partition}"] if partition else [])]
    nodes = set(subprocess.run(command, capture_output=True, text=True).stdout.split())
    here = subprocess.run(["hostname", "-s"], capture_output=True, text=True).stdout.strip()
    kind, mounted = file_system(folder, Path("/proc/self/mounts"))
    if nodes - {here} and kind in ONE_MACHINE:
        raise LaunchError(
            f"output={str(folder)!r} lies on a disk of this machine ({kind}, mounted at {mounted}), which the nodes of "
            "the cluster don't see: choose an output folder on the shared file system, or add --shared if this machine "
            "serves that disk to them"
        )


def file_system(folder: Path, mounts: Path) -> tuple[str, str]:
    """(type, mount point) of the file system that ``folder`` is or will be on; ("", "") where it can't be known."""
    if not mounts.exists():
        return "", ""
    rows = [line.split() for line in mounts.read_text().splitlines()]
    holding = [(row[1], row[2]) for row in rows if folder.resolve().is_relative_to(row[1])]
    point, kind = max(reversed(holding), key=lambda row: len(row[0]), default=("", ""))  # the last mounted covers
    return kind, point


def follow(paths: JobPaths) -> int:
    """Show the first process's log until the job has ended; returns 0 if it completed, else 1.

    The job goes on when this is interrupted.
    """
    tail, state, looks = Tail(paths.stdout), "", 0
    while state not in ENDED:
        if looks % ASK_EVERY == 0:
            now = job_state(str(paths.job_id))
            if now != state:
                print(f"job {paths.job_id}: {now}", file=sys.stderr)
            state = now
            if state == GONE:
                break
        tail.show()
        time.sleep(POLL)
        looks += 1
    tail.show()
    if not paths.stdout.exists():
        print(
            f"job {paths.job_id} left no log at {paths.stdout}: its node probably doesn't see that folder, or has no "
            f"room there. SLURM's own words: scontrol show job {paths.job_id}",
            file=sys.stderr,
        )
    return 0 if state == "COMPLETED" else 1
