"""Child processes are told once, killed by Ctrl-C after that, and never left behind; programs stand in for runs."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from franca.children import SIGNALS, STOPPED, Child, Children
from tests.programs import IGNORES, OBEYS, SAVES, SLEEP, sent_when, wait_for

COUNTS = """
import signal, time
signal.signal(15, lambda *_: print('asked', flush=True))
print('up', flush=True)
time.sleep(2)
"""
LEAVES = "import os, subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
Start = Callable[[Children, str], Child]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start(children, program)`: one more that executes this Python, once it has printed its first line."""

    def make(children: Children, program: str) -> Child:
        log = tmp_path / f"{len(children.all)}.txt"
        with log.open("wb") as file:
            child = children.add(Child(["-c", program], file))
        wait_for(lambda: log.stat().st_size > 0)
        return child

    return make


def ended(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    return True


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_all_and_remembered(start: Start, number: int) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = [signal.getsignal(each) for each in SIGNALS]
    with Children(60) as children:
        both = [start(children, OBEYS), start(children, OBEYS)]
        signal.raise_signal(number)
        children.wait(60)
        assert [child.poll() for child in both] == [STOPPED, STOPPED]
        assert children.signal_number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_each_is_asked_once(start: Start, tmp_path: Path) -> None:
    with Children(60) as children:
        child = start(children, COUNTS)
        signal.raise_signal(signal.SIGTERM)
        wait_for(lambda: "asked" in (tmp_path / "0.txt").read_text())
        signal.raise_signal(signal.SIGTERM)
        children.ask()
    assert child.poll() == 0
    assert (tmp_path / "0.txt").read_text().split() == ["up", "asked"]


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_signal_kills_and_the_first_is_remembered(start: Start, first: int) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Children(60) as children:
        child = start(children, IGNORES)
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
        children.wait(60)
    assert child.poll() == 128 + signal.SIGKILL
    assert child.killed
    assert child.stopped_by is None
    assert children.signal_number == first


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP])
def test_schedulers_and_closing_terminals_may_say_it_again(start: Start, again: int) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Children(60) as children:
        child = start(children, SAVES)
        for number in (signal.SIGINT, again, again):
            signal.raise_signal(number)
    assert child.poll() == STOPPED
    assert not child.killed


@pytest.mark.parametrize(
    ("program", "ending", "stopped_by"),
    [
        ("", "status 0", None),
        ("raise SystemExit(2)", "status 2", None),
        (f"raise SystemExit({STOPPED})", "status 143", signal.SIGTERM),
        ("raise SystemExit(130)", "status 130", signal.SIGINT),
        ("raise SystemExit(129)", "status 129", None),
        ("import os; os.kill(os.getpid(), 15)", "signal 15 (SIGTERM)", signal.SIGTERM),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 (SIGKILL)", None),
    ],
)
def test_what_saves_and_what_had_nothing_to_save_yet_has_stopped(
    start: Start, program: str, ending: str, stopped_by: int | None
) -> None:
    with Children(60) as children:
        child = start(children, f"print('up', flush=True); {program}")
        wait_for(lambda: child.poll() is not None)
    assert (child.ending, child.stopped_by) == (ending, stopped_by)
    assert not child.killed


def test_its_time_ends_with_it_not_with_its_neighbours(start: Start) -> None:
    with Children(60) as children:
        slow = start(children, SAVES)
        quick = start(children, OBEYS)
        before = quick.seconds
        children.ask()
        children.wait(60)
    assert quick.seconds - before < slow.seconds - quick.seconds + before
    assert slow.seconds > 1


def test_what_nohup_has_ignored_stays_so(start: Start) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Children(60) as children:
        child = start(children, OBEYS)
        signal.raise_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert child.poll() is None
        assert children.signal_number is None


def test_a_signal_that_comes_while_one_is_started_reaches_it(start: Start) -> None:
    with Children(60) as children:
        signal.raise_signal(signal.SIGTERM)
        child = children.add(Child(["-c", SLEEP], 2))
    assert child.poll() == STOPPED, "it had no handler yet"


def test_on_leaving_they_may_save_within_the_grace(start: Start) -> None:
    with Children(30) as children:
        child = start(children, SAVES)
    assert child.poll() == STOPPED
    with Children(0.2) as children:
        child = start(children, IGNORES)
    assert child.poll() == 128 + signal.SIGKILL


@pytest.mark.parametrize("ends", ["", "import time; time.sleep(600)"])
def test_what_a_child_has_started_ends_with_it(ends: str, start: Start, tmp_path: Path) -> None:
    with Children(60) as children:
        child = start(children, f"{LEAVES}; {ends}")
        if ends:
            child.kill()
        wait_for(lambda: child.poll() is not None)
        wait_for(lambda: ended(int((tmp_path / "0.txt").read_text())))


def test_a_child_is_out_of_reach_of_the_terminal(start: Start) -> None:
    with Children(0) as children:
        child = start(children, OBEYS)
        assert os.getsid(child.process.pid) == child.process.pid


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs os.waitid")
def test_one_that_failed_before_it_was_asked_was_not_asked(start: Start) -> None:
    with Children(60) as children:
        child = start(children, "print('no images'); raise SystemExit(2)")
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert child.poll() == 2
    assert not child.asked


def test_signals_that_come_while_it_waits_are_heeded(start: Start) -> None:
    with Children(60) as children:
        child = start(children, OBEYS)
        began = time.monotonic()
        with sent_when(lambda: time.monotonic() > began + 0.3, signal.SIGINT):
            children.wait(60)
        assert time.monotonic() - began < 30
    assert child.poll() == STOPPED
