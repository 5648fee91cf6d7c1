"""The training process is stopped, followed and waited for; Python programs stand in for franca.train."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.children import STOPPED
from franca.reproduce import process
from franca.reproduce.__main__ import main
from franca.reproduce.errors import ReproduceError, Stopped
from franca.reproduce.process import TrainingProcess
from tests.programs import FAILS, IGNORES, OBEYS, SLEEP, sent_when
from tests.tiny import write_tiny

Processes = Callable[[str], TrainingProcess]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """`processes(program)`: one that executes this Python; what it says is kept in its words."""
    monkeypatch.setattr(process, "POLL", 0.02)

    def make(program: str) -> TrainingProcess:
        made = TrainingProcess([], lambda _: None)
        made.arguments = ["-c", program]
        return made

    return make


def test_a_run_that_ends_is_followed_to_its_last_line(processes: Processes) -> None:
    child = processes("print('one'); print('two')")
    asked: list[int] = []
    child.run(lambda: bool(asked.append(len(child.words))))
    assert list(child.words) == ["one", "two"]
    assert asked[-1] == 2, "it is looked at once more when all is written"


def test_it_is_stopped_when_there_is_enough(processes: Processes) -> None:
    child, said = processes(OBEYS), list[str]()
    child.say = said.append
    child.run(lambda: bool(child.words))
    assert child.child.poll() == STOPPED
    assert said[-1] == "all that is to be compared is there: the run is asked to save and stop"


def test_one_that_is_asked_to_stop_while_its_handler_is_not_there_has_not_failed(processes: Processes) -> None:
    child = processes(SLEEP)
    child.run(lambda: bool(child.words))
    assert child.child.poll() == STOPPED


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "stopped by SIGTERM; the same command continues the run"),
        (signal.SIGINT, "stopped by SIGINT, passed on to the run as SIGTERM; the same command continues the run"),
    ],
)
def test_the_signal_that_came_is_the_one_reported(processes: Processes, number: int, words: str) -> None:
    child = processes(OBEYS)
    with pytest.raises(Stopped, match=words) as stop, sent_when(lambda: bool(child.words), number):
        child.run(lambda: False)
    assert stop.value.signal_number == number
    assert child.child.poll() == STOPPED


def test_what_fails_while_it_saves_is_an_error(processes: Processes) -> None:
    child, words = processes(FAILS), "status 1; its last words:\n  up\n  the"
    with pytest.raises(ReproduceError, match=words), sent_when(lambda: bool(child.words), signal.SIGTERM):
        child.run(lambda: False)


def test_a_second_ctrl_c_stops_it_at_once_and_is_no_error(processes: Processes) -> None:
    child, words = (
        processes(IGNORES),
        "stopped at once; the same command continues the run from the last state that it saved",
    )
    with pytest.raises(Stopped, match=words) as stop, sent_when(lambda: bool(child.words), *[signal.SIGINT] * 2):
        child.run(lambda: False)
    assert stop.value.signal_number == signal.SIGINT


def test_a_run_that_someone_else_kills_is_an_error(processes: Processes) -> None:
    child = processes(SLEEP)

    def kill() -> bool:
        if child.words and child.child.poll() is None:
            os.kill(child.child.process.pid, signal.SIGKILL)
        return False

    with pytest.raises(ReproduceError, match="ended with signal 9"):
        child.run(kill)


def test_what_cannot_be_said_is_read_all_the_same(processes: Processes) -> None:
    def say(_: str) -> None:
        raise OSError("the terminal is gone")

    child = processes("for line in range(20_000): print(line)")
    child.say = say
    child.run(lambda: False)
    assert child.words[-1] == "19999"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_someone_else_stops_is_stopped(processes: Processes, number: int) -> None:
    child = processes(f"import signal, sys, time; signal.signal({number:d}, lambda n, _: sys.exit(128 + n)); {SLEEP}")
    sent: list[int] = []

    def stop_the_child() -> bool:
        if child.words and not sent:
            sent.append(child.child.process.pid)
            os.kill(sent[0], number)
        return False

    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name};"):
        child.run(stop_the_child)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('error: no images'); sys.exit(2)", r"status 2; its last words:\n  error: no images"),
        ("import os; os.kill(os.getpid(), 9)", r"signal 9 \(SIGKILL\)"),
        ("raise SystemExit(255)", "status 255"),
    ],
)
def test_a_run_that_fails_is_an_error_with_its_last_words(processes: Processes, program: str, words: str) -> None:
    with pytest.raises(ReproduceError, match=words):
        processes(program).run(lambda: False)


def test_the_run_is_stopped_when_looking_fails(processes: Processes) -> None:
    child = processes(OBEYS)

    def fail() -> bool:
        if child.words:
            raise OSError("disk")
        return False

    with pytest.raises(OSError, match="disk"):
        child.run(fail)
    assert child.child.poll() == STOPPED


@pytest.mark.slow
def test_ctrl_c_stops_a_real_run(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_tiny(tmp_path / "long.yaml", images, "steps=1000000", "device=cpu")
    metrics = tmp_path / "run-seed0" / "metrics.jsonl"

    with sent_when(lambda: metrics.exists() and metrics.stat().st_size > 0, signal.SIGINT):
        assert main([str(recipe), "--record", "0,1", f"output={tmp_path / 'run'}"]) == 130
    said = capsys.readouterr()
    assert "by SIGTERM; the same command continues" in said.out, "the run's own words: it has saved its state"
    assert said.err == "stopped by SIGINT, passed on to the run as SIGTERM; the same command continues the run\n"
