"""What each process of a SLURM job does: it becomes a rank, trains, and goes back into the queue when it must stop."""

import logging
import os
import runpy
import signal
import subprocess
import sys
from types import FrameType

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable

UNANSWERED = "unknown: SLURM does not answer"
GONE = "no longer known to SLURM"
FIRST_PORT, PORTS = 20000, 10000  # below the ports that Linux gives to outgoing connections


def job_state(job_id: str) -> str:
    """SLURM's name for the state of a job (RUNNING, PENDING, …), or UNANSWERED, or GONE some minutes after its end."""
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return UNANSWERED
    return asked.stdout.strip() or (GONE if "Invalid job id" in asked.stderr else UNANSWERED)


def rank_variables(environment: submitit.JobEnvironment) -> dict[str, str]:
    """What torch.distributed reads, from SLURM's own variables; the same on all processes but for the ranks."""
    return {
        "RANK": str(environment.global_rank),
        "WORLD_SIZE": str(environment.num_tasks),
        "LOCAL_RANK": str(environment.local_rank),
        "LOCAL_WORLD_SIZE": str(environment.num_tasks // environment.num_nodes),
        "MASTER_ADDR": environment.hostnames[0],
        "MASTER_PORT": str(FIRST_PORT + int(environment.raw_job_id) % PORTS),
    }


def run_training(arguments: list[str]) -> int:
    """``python -m franca.train`` with these arguments, in this process; returns its exit status."""
    sys.argv = ["franca.train", *arguments]
    try:
        runpy.run_module("franca.train", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


class TrainingJob(Checkpointable):
    """One process of a training run, as submitit calls it.

    Before the time limit SLURM sends submitit's signal, and SIGTERM when the job is preempted. Either way the trainer
    saves its state between two steps and ends with status 143; only then the first process hands over to submitit,
    which counts the stretches and puts the job back into the queue. Started again, it continues from that state.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        logging.getLogger("submitit").propagate = False  # it writes by itself
        environment = submitit.JobEnvironment()
        os.environ.update(rank_variables(environment))
        notice = signal.Signals[f"SIG{environment.USR_SIG}"]
        requeue = signal.getsignal(notice)
        signal.signal(signal.SIGTERM, _stop_at_once)  # until the trainer listens itself
        signal.signal(notice, _pass_on_as_sigterm)
        status = run_training(self.arguments)
        for number in (signal.SIGTERM, notice):  # what comes now, comes because the job goes or is taken away
            signal.signal(number, signal.SIG_IGN)
        if status != 128 + signal.SIGTERM:
            _end(status)
        elif environment.global_rank:
            sys.exit(0)  # a failure would end the first process before it has requeued the job
        elif job_state(environment.job_id) not in ("RUNNING", UNANSWERED):
            sys.exit(status)  # cancelled, or already on its way back into the queue
        else:
            assert callable(requeue), f"submitit does not handle {notice.name}"
            try:
                requeue(notice, None)
            except UncompletedJobError as end:
                print(f"{end} Its state is saved; the launch command continues it (--requeues)", file=sys.stderr)
                sys.exit(status)


def _end(status: int) -> None:
    if status:
        sys.exit(status)


def _stop_at_once(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _pass_on_as_sigterm(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: the trainer takes a second SIGTERM for impatience
    signal.raise_signal(signal.SIGTERM)
