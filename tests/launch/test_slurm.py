"""What a job is told by SLURM, where its files may lie, and how its state is read; programs of SLURM are stand-ins."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit
from submitit.core.utils import UncompletedJobError

from franca.launch import job
from franca.launch.job import GONE, UNANSWERED, TrainingJob, job_state, rank_variables, run_training
from franca.launch.resources import LaunchError
from franca.launch.slurm import file_system, require_shared

STEP = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "70123",
    "SLURM_NTASKS": "32",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[007-009,012]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}
MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/scratch xfs rw 0 0
tmpfs /tmp tmpfs rw 0 0
"""


def test_ranks_and_meeting_place_come_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert rank_variables(submitit.JobEnvironment()) == {
        "RANK": "9",
        "WORLD_SIZE": "32",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": "20123",
    }


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`step(rank, status, state)` runs a process of a job whose training ends so; the signals that submitit got."""

    def run(rank: str, status: int, state: str) -> list[int]:
        handed_over: list[int] = []
        for name, value in (STEP | {"SLURM_PROCID": rank}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(job, "run_training", lambda _: status)
        monkeypatch.setattr(job, "job_state", lambda _: state)
        earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
        signal.signal(signal.SIGUSR2, lambda number, _: handed_over.append(number))
        try:
            TrainingJob([])()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        return handed_over

    return run


def test_the_first_process_of_a_stopped_run_requeues_the_job(step: Callable[..., list[int]]) -> None:
    assert step("0", 143, "RUNNING") == [signal.SIGUSR2]
    assert step("0", 143, UNANSWERED) == [signal.SIGUSR2]


def test_a_job_that_was_requeued_too_often_says_how_to_go_on(
    step: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UncompletedJobError("Job not requeued because: timed-out too many times.")

    monkeypatch.setattr(signal, "getsignal", lambda _: refuse)
    with pytest.raises(SystemExit) as end:
        step("0", 143, "RUNNING")
    assert end.value.code == 143
    assert "timed-out too many times. Its state is saved; the launch command continues it" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_a_job_that_is_taken_away_is_not_requeued(step: Callable[..., list[int]], state: str) -> None:
    with pytest.raises(SystemExit) as end:
        step("0", 143, state)
    assert end.value.code == 143


def test_other_processes_of_a_stopped_run_end_well(step: Callable[..., list[int]]) -> None:
    with pytest.raises(SystemExit) as end:
        step("5", 143, "RUNNING")
    assert end.value.code == 0


@pytest.mark.parametrize("rank", ["0", "5"])
def test_a_failed_run_is_a_failed_job_and_a_finished_one_is_not(step: Callable[..., list[int]], rank: str) -> None:
    assert step(rank, 0, "RUNNING") == []
    with pytest.raises(SystemExit) as end:
        step(rank, 2, "RUNNING")
    assert end.value.code == 2


def test_training_runs_in_this_process_with_its_own_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delitem(sys.modules, "franca.train.__main__", raising=False)  # a job's process starts without it
    assert run_training(["--config", "no/such.yaml"]) == 2
    assert "'no/such.yaml' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("echo RUNNING", "RUNNING"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", GONE),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", UNANSWERED),
        (None, UNANSWERED),
    ],
)
def test_a_controller_that_does_not_answer_is_not_a_job_that_is_gone(
    program: str | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if program:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "squeue").chmod(0o755)
    assert job_state("7") == state


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/home/me/runs", ("nfs4", "/home")),
        ("/home/scratch/runs", ("xfs", "/home/scratch")),
        ("/homes/runs", ("ext4", "/")),
    ],
)
def test_the_file_system_of_a_folder_is_the_innermost(folder: str, expected: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert file_system(Path(folder), tmp_path / "mounts") == expected


@pytest.mark.parametrize(("nodes", "refused"), [("here", False), ("here\\ngpu1", True), ("gpu1", True)])
def test_a_disk_of_this_machine_is_refused_when_jobs_run_elsewhere(
    nodes: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, line in (("sinfo", f"printf '{nodes}\\n'"), ("hostname", "echo here")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("franca.launch.slurm.file_system", lambda *_: ("ext4", "/"))
    if refused:
        with pytest.raises(LaunchError, match=r"lies on a disk of this machine \(ext4, mounted at /\).*--shared"):
            require_shared(tmp_path / "run", "")
    else:
        require_shared(tmp_path / "run", "")
