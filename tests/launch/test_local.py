"""Several processes on this machine: who they are told to be, and how they end."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from franca.children import STOPPED
from franca.launch import local
from franca.launch.local import LocalRun
from franca.metrics import read_metrics
from tests.programs import FAILS, OBEYS, SLEEP, sent_when

Runs = Callable[..., LocalRun]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """`runs(program, processes=…)`: a run whose processes execute this Python instead of franca.train."""

    def make(program: str, processes: int = 2) -> LocalRun:
        run = LocalRun([], processes, tmp_path / "jobs")
        run.arguments = ["-c", program]
        return run

    return make


def says(run: LocalRun) -> list[str]:
    return [log.read_text().strip() for log in run.logs]


def sent_when_up(run: LocalRun, number: int) -> AbstractContextManager[None]:
    """A signal to this process, once each process of the run has printed its first line."""
    return sent_when(lambda: all(log.exists() and log.stat().st_size for log in run.logs), number)


def test_each_process_is_told_its_place(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]
    run = runs(f"import os; print(*(os.environ[name] for name in {names}))", processes=3)
    assert run.run() == 0
    places = [line.split() for line in says(run)]
    assert [place[:2] for place in places] == [["0", "0"], ["1", "1"], ["2", "2"]]
    assert {tuple(place[2:5]) for place in places} == {("3", "3", "127.0.0.1")}
    assert len({place[5] for place in places}) == 1
    assert {int(place[6]) for place in places} == {max((os.cpu_count() or 1) // 3, 1)}


def test_the_first_process_can_be_followed(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    run = runs("import os; print('I am', os.environ['RANK'])")
    assert run.run(follow=True) == 0
    assert capfd.readouterr().out == "I am 0\n"


def test_a_process_that_fails_ends_the_run_with_its_status_and_last_words(
    runs: Runs, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.2)
    run = runs(f"import os, sys; os.environ['RANK'] == '1' and sys.exit('no more'); {SLEEP}")
    assert run.run() == 1
    said = capfd.readouterr().err
    assert f"process 1 ended with status 1; {run.logs[1]} ends with\n  no more" in said
    assert all(child.poll() is not None for child in run.children.all)


def test_a_process_that_is_killed_before_it_listens_has_failed_unless_it_was_asked(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.2)
    run = runs(f"import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 15); {SLEEP}")
    assert run.run() == STOPPED
    assert run.children.all[0].poll() == 128 + signal.SIGKILL, "it would wait for the other one"
    run = runs(SLEEP)
    with sent_when_up(run, signal.SIGTERM):
        assert run.run() == STOPPED
    assert [child.poll() for child in run.children.all] == [STOPPED, STOPPED]


def test_a_signal_stops_the_run(runs: Runs) -> None:
    run = runs(OBEYS)
    with sent_when_up(run, signal.SIGINT):
        assert run.run() == STOPPED
    assert [child.poll() for child in run.children.all] == [STOPPED, STOPPED]


def test_what_fails_while_it_saves_has_failed(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    run = runs(FAILS, processes=1)
    with sent_when_up(run, signal.SIGTERM):
        assert run.run() == 1
    assert "status 1" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which takes no byte")
def test_a_terminal_that_is_gone_ends_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1, closefd=False))
    assert runs("import time; print('one'); time.sleep(0.5); print('two')", processes=1).run(follow=True) == 0
    assert runs("raise SystemExit(3)", processes=1).run(follow=True) == 3


def test_the_time_limit_stops_the_run(runs: Runs) -> None:
    run = runs(OBEYS)
    run.deadline = time.monotonic() + 1.0
    assert run.run() == STOPPED


@pytest.mark.slow
def test_a_run_trains_and_is_continued(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for steps in (2, 2):  # the second finds a finished run
        run = LocalRun(["--config", str(tiny), f"steps={steps}"], 1, tmp_path / "jobs")
        assert run.run() == 0, says(run)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert says(run)[0].count("done: 2 steps") == 2
