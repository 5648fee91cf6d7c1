"""Runs on a real SLURM: FRANCA_SLURM names the slurm.conf of a cluster that scripts/slurm_test_cluster.sh started."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from franca.launch.job import GONE, job_state
from franca.launch.slurm import ENDED
from franca.metrics import read_metrics
from franca.train.vitals import Vitals

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = (sys.executable, "-m", "franca.launch")
PATIENCE = 240  # seconds for anything that a loaded machine does in twenty
AT_THE_END = 90  # seconds that a cancelled job may take: more than the slurm.conf's KillWait
pytestmark = pytest.mark.slow
Launch = Callable[..., str]


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience} seconds for {what}"
        time.sleep(0.1)


def command(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command to its end, which none is waited for without limit."""
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=check)


def processes(job: str) -> list[list[str]]:
    """SLURM's rows of a running job: process, job, step, local and global number of the task."""
    return [row.split() for row in command("scontrol", "listpids", job, check=False).stdout.splitlines()[1:]]


def end(job: str) -> None:
    """Cancel a job, and kill what does not go by itself."""
    started: list[int] = []
    try:
        started = [int(row[0]) for row in processes(job)]
        command("scancel", job, check=False)
        wait_for(lambda: job_state(job) in (*ENDED, GONE), f"the end of job {job}", AT_THE_END)
    except (AssertionError, subprocess.TimeoutExpired):
        for process in started:
            if process > 1:  # SLURM lists 0 and -1 for what it knows no process of
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
        raise


@pytest.fixture
def cluster(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of SLURM, and what they start, speak to the test cluster."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def launch(cluster: None, tiny: Path) -> Iterator[Launch]:
    """`launch("key=value", …)` submits the tiny run; the job's number. What is left of it ends with the test."""
    jobs: list[str] = []

    def submit(*arguments: str) -> str:
        done = command(*LAUNCH, "--time", "30", "--config", str(tiny), *arguments, check=False)
        assert done.returncode == 0, done.stderr
        jobs.append(re.findall(r"^job (\d+); ", done.stdout)[0])
        return jobs[-1]

    yield submit
    for number in jobs:
        end(number)


def steps(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line), default=0)


def wait_while_it_runs(run: Path, job: str, condition: Callable[[], Any], what: str) -> None:
    def met() -> Any:
        ended = job_state(job) in (*ENDED, GONE)  # asked first: what it did last counts
        done = condition()
        assert done or not ended, f"job {job} ended without {what}:\n{log_of(run, job)}"
        return done

    wait_for(met, what)


def wait_for_step(run: Path, job: str, step: int) -> None:
    wait_while_it_runs(run, job, lambda: steps(run) >= step, f"step {step}")


def wait_for_end(job: str) -> str:
    wait_for(lambda: job_state(job) in ENDED, f"the end of job {job}")
    return job_state(job)


def log_of(run: Path, job: str, rank: int = 0) -> str:
    return (run / "jobs" / job / f"{job}_{rank}_log.out").read_text()


def numbers(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in Vitals.names()} for line in lines]


def test_two_tasks_requeued_in_the_middle_end_with_the_losses_of_an_uninterrupted_run(
    launch: Launch, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launch("--tasks-per-node", "2", "steps=80")
    wait_for_step(run, job, 10)
    command("scontrol", "requeue", job)
    assert wait_for_end(job) == "COMPLETED", log_of(run, job)
    continued = re.findall(r"continuing from step (\d+)", log_of(run, job))
    assert len(continued) == 1
    assert 10 <= int(continued[0]) < 80
    assert "Starting with" in log_of(run, job, rank=1)

    whole = tmp_path / "whole"
    local = ("--local", "--tasks-per-node", "2", "--config", str(tiny), "steps=80", f"output={whole}")
    done = command(*LAUNCH, *local, check=False)
    assert done.returncode == 0, done.stderr
    assert numbers(whole)[-1]["step"] == 80
    assert numbers(run) == numbers(whole)


def test_before_the_time_limit_the_run_saves_and_requeues_itself_until_it_is_cancelled(
    launch: Launch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = launch("steps=1000000")
    wait_for_step(run, job, 1)
    command("scancel", "--signal=USR2", job)  # as SLURM does it before the limit
    wait_while_it_runs(run, job, lambda: "continuing from step" in log_of(run, job), "a second stretch")
    saved = int(re.findall(r"stopped at step (\d+) by SIGTERM", log_of(run, job))[0])
    assert f"continuing from step {saved} " in log_of(run, job)

    wait_for_step(run, job, saved + 1)
    command("scancel", job)
    assert wait_for_end(job) == "CANCELLED"
    saved = int(re.findall(r"stopped at step (\d+) by SIGTERM", log_of(run, job))[1])
    assert (run / "checkpoints" / f"step_{saved:07d}" / "manifest.json").is_file()


def test_a_run_that_fails_is_a_failed_job_and_followed_to_its_reason(cluster: None, tiny: Path, tmp_path: Path) -> None:
    followed = ("--time", "30", "--follow", "--config", str(tiny), "data.path=/no/such/folder")
    done = command(*LAUNCH, *followed, check=False)
    assert done.returncode == 1
    assert "error: data.path='/no/such/folder' does not exist" in done.stdout
    assert re.search(r"^job \d+: FAILED$", done.stderr, re.MULTILINE)


def test_when_one_task_dies_the_job_does_not_wait_for_it(launch: Launch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launch("--tasks-per-node", "2", "steps=1000000")
    wait_for_step(run, job, 1)
    (second,) = [row[0] for row in processes(job) if row[4] == "1"]
    os.kill(int(second), 9)
    assert wait_for_end(job) == "FAILED"
