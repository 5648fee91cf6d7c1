"""Child processes are told once, killed the second time, and never left behind; Python programs stand in for runs."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from franca.children import SIGNALS, STOPPED, Child, Children

SLEEP = "print('up', flush=True); time.sleep(60)"
OBEYS = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({STOPPED})); {SLEEP}"
IGNORES = f"import signal, time; signal.signal(15, signal.SIG_IGN); {SLEEP}"
SAVES = f"""
import signal, sys, time
def save(*_):
    time.sleep(1)
    sys.exit({STOPPED})
signal.signal(15, save)
{SLEEP}
"""
LEAVES = "import os, subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
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


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    return True


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_all_once_and_remembered(start: Start, number: int) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = [signal.getsignal(each) for each in SIGNALS]
    with Children(60) as children:
        both = [start(children, OBEYS), start(children, OBEYS)]
        signal.raise_signal(number)
        children.wait(60)
        assert [child.poll() for child in both] == [STOPPED, STOPPED]
        assert children.signal_number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_second_signal_kills_and_the_first_is_remembered(start: Start) -> None:
    with Children(60) as children:
        child = start(children, IGNORES)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        children.wait(60)
    assert child.poll() == 128 + signal.SIGKILL
    assert children.signal_number == signal.SIGINT


def test_a_terminal_that_closes_may_say_so_twice(start: Start) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Children(60) as children:
        child = start(children, SAVES)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert child.poll() == STOPPED


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
        child = children.add(Child(["-c", f"import time; {SLEEP}"], 2))
    assert child.poll() == STOPPED, "it had no handler yet"


def test_on_leaving_they_may_save_within_the_grace(start: Start) -> None:
    with Children(30) as children:
        child = start(children, SAVES)
    assert child.poll() == STOPPED
    with Children(0.2) as children:
        child = start(children, IGNORES)
    assert child.poll() == 128 + signal.SIGKILL


@pytest.mark.parametrize("ends", ["", "import time; time.sleep(60)"])
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


def test_signals_that_come_from_another_process_are_heeded_while_it_waits(start: Start) -> None:
    with Children(60) as children:
        child = start(children, OBEYS)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        children.wait(60)
        assert time.monotonic() - began < 30
    assert child.poll() == STOPPED
