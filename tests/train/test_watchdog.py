"""Who hangs leaves stacks that name the place, and nobody else does."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from franca.data.loader import _Batches
from franca.data.work import Work
from franca.train import watchdog as watchdog_module
from franca.train.config import TrainConfig
from franca.train.logger import LogConfig
from franca.train.rank_log import LogFile, log_file
from franca.train.trainer import Trainer
from franca.train.watchdog import EXCUSE, SIGNALS, HangWatchdog, duration

LONG, SHORT = 60.0, 0.2  # seconds: a limit that no test reaches, and one that is reached
Watch = Callable[..., HangWatchdog]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    with LogFile(tmp_path / "rank_0.log") as opened:
        yield opened


@pytest.fixture
def watch(file: LogFile, said: list[str]) -> Watch:
    """`watch(seconds, group_seconds)`: a watchdog over this process, not entered yet."""
    return lambda seconds, group=float("inf"): HangWatchdog(file, seconds, group, said.append)


def text_of(file: LogFile) -> str:
    return Path(file.name).read_text()


def stuck_until(condition: Callable[[], object]) -> None:
    """Hangs, as far as anyone can see from outside."""
    deadline = time.monotonic() + LONG
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_who_completes_no_step_leaves_the_stacks_of_all_threads_and_rank_0_says_so(
    watch: Watch, file: LogFile, said: list[str]
) -> None:
    with watch(SHORT) as watchdog:
        watchdog.completed(41)
        stuck_until(lambda: said)
        watchdog.completed(42)
    text = text_of(file)
    assert "the last was 41, then: training. Stacks of process" in text
    stacks, _, after = text.partition("end of the stacks")
    assert "in stuck_until" in stacks
    assert "in _watch" in stacks, "the thread that writes is one of all"
    assert "it went on, and is at step 42, training" in after
    assert file.name in said[0]


def test_a_hang_that_lasts_is_written_down_again(watch: Watch, file: LogFile, said: list[str]) -> None:
    with watch(SHORT) as watchdog:
        watchdog.completed(1)
        stuck_until(lambda: len(said) == 2)
    assert text_of(file).count("end of the stacks") == 2


def test_steps_keep_it_quiet(watch: Watch, file: LogFile, said: list[str]) -> None:
    with watch(2.0) as watchdog:
        for step in range(60):
            watchdog.completed(step)
            time.sleep(0.05)
    assert text_of(file) == ""
    assert said == []


def test_saving_and_evaluating_may_take_as_long_as_the_group_waits(
    watch: Watch, file: LogFile, said: list[str]
) -> None:
    with watch(SHORT, group=5 * SHORT) as one_of_several:
        assert one_of_several.last.limit == 4 * SHORT
        one_of_several.completed(7)
        with one_of_several.excused("evaluating"):
            stuck_until(lambda: said)
    assert "the last was 7, then: evaluating" in text_of(file)


@pytest.mark.parametrize("doing", ["starting", "saving"])
def test_in_a_single_process_too_nothing_takes_for_ever(
    doing: str, watch: Watch, file: LogFile, said: list[str]
) -> None:
    with watch(SHORT / 2) as alone, alone.excused(doing):
        assert alone.last.limit == EXCUSE * SHORT / 2
        stuck_until(lambda: said)
    waited = float(text_of(file).partition("no step was completed in the last ")[2].split()[0])
    assert waited >= round(EXCUSE * SHORT / 2, 1), "what it waited is written to a tenth of a second"
    assert f"the last was 0, then: {doing}" in text_of(file)


def test_after_going_back_it_names_the_step_that_the_run_is_at(watch: Watch) -> None:
    watchdog = watch(LONG)
    watchdog.completed(9)
    with watchdog.excused("going back"):
        pass
    watchdog.completed(4)
    with watchdog.excused("saving"):
        assert (watchdog.last.step, watchdog.last.doing) == (4, "saving")
    assert (watchdog.last.step, watchdog.last.doing) == (4, "training")


START = """
import sys
from franca.train.config import load_config
from franca.train.watch import Watch
with Watch(load_config(overrides=[f"output={sys.argv[1]}", f"log.hang_minutes={sys.argv[2]}"])) as watch:
    print("watched", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0.0, 0.001])
def test_a_start_that_hangs_shows_where_on_stderr_before_the_run_has_a_folder(minutes: float, tmp_path: Path) -> None:
    """Unasked, and when asked by the signal."""
    command = [sys.executable, "-c", START, str(tmp_path / "run"), str(minutes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as started:  # type: ignore[call-overload]
        assert started.stdout.readline() == "watched\n"
        if not minutes:
            started.send_signal(SIGNALS[0])
        seen = ""
        while "<module>" not in seen:
            seen += started.stderr.readline()
        if minutes:
            while "the start takes more than" not in seen:
                seen += started.stderr.readline()
        started.stdin.close()
        started.stderr.read()
    assert started.returncode == 0
    assert not (tmp_path / "run").exists()


def test_what_hangs_after_a_save_is_noticed_as_ever(watch: Watch, file: LogFile, said: list[str]) -> None:
    with watch(SHORT) as watchdog:
        watchdog.completed(8)
        with watchdog.excused("saving"):
            pass
        stuck_until(lambda: said)
    assert "the last was 8, then: training" in text_of(file)


def test_the_stacks_come_before_the_group_gives_up(watch: Watch) -> None:
    assert watch(600.0, group=60.0).seconds < 60.0
    assert watch(600.0, group=1800.0).seconds == 600.0


def test_native_code_that_keeps_the_interpreter_does_not_silence_it(
    watch: Watch, file: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "BLIND", 0.0)
    with watch(SHORT):
        ctypes.PyDLL(None).usleep(int(1e6 * 4 * SHORT))  # holds the interpreter's lock
    assert "in test_native_code_that_keeps_the_interpreter" in text_of(file)


def stuck_in_a_worker() -> None:
    time.sleep(LONG)


def test_workers_that_are_forked_meanwhile_answer_too(watch: Watch, file: LogFile, said: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    released = context.Event()
    older = context.Process(target=released.wait, args=(LONG,), daemon=True)
    older.start()  # not prepared for the signal: must be left alone
    with watch(SHORT) as watchdog:
        worker = context.Process(target=stuck_in_a_worker, daemon=True)
        worker.start()
        watchdog.completed(1)
        stuck_until(lambda: said)
        assert worker.is_alive()
        worker.kill()
        worker.join()
    released.set()
    older.join()
    assert older.exitcode == 0
    stacks = text_of(file).partition(f"stacks of its worker {worker.name}, process {worker.pid}")[2]
    assert "in stuck_in_a_worker" in stacks.partition("end of the stacks")[0]


@contextmanager
def taken(*numbers: signal.Signals) -> Iterator[None]:
    earlier = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("used", [0, 1])
def test_a_free_signal_asks_for_the_stacks_at_any_time(used: int, watch: Watch, file: LogFile) -> None:
    """A scheduler's own signal is left to it; here nothing else is watched."""
    with taken(*SIGNALS[:used]), watch(0.0):
        os.kill(os.getpid(), SIGNALS[used])
        stuck_until(lambda: text_of(file))
    assert "in test_a_free_signal_asks" in text_of(file)


def test_where_no_signal_is_free_none_is_taken(watch: Watch) -> None:
    with taken(*SIGNALS):
        before = [signal.getsignal(number) for number in SIGNALS]
        with watch(SHORT) as watchdog:
            assert watchdog.signal is None
            assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
def test_a_run_whose_loader_hangs_says_where_worker_and_trainer_stand(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here after a save. Then it goes on, and nothing is lost."""
    trainer = Trainer(tiny("steps=4", "data.workers=1", "data.start_method=fork", "log.hang_minutes=0.02"))
    log = log_file(trainer.output, 0)
    draw = _Batches.__getitem__

    def is_told() -> bool:
        told = log.read_text().partition("the last was 2, then: training")[2]
        return all(f" in {name}\n" in told for name in ("_next", "stuck_in_decoding"))

    def stuck_in_decoding(batches: _Batches, work: Work) -> Any:
        if work.first >= 8:  # of the third step
            stuck_until(is_told)
        return draw(batches, work)

    monkeypatch.setattr(_Batches, "__getitem__", stuck_in_decoding)
    trainer.run()
    assert is_told()
    assert trainer.state.step == 4


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (0.2, 61, 600, 5400)] == ["0.2 s", "61 s", "10 minutes", "90 minutes"]


@pytest.mark.parametrize("minutes", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match=r"log\.hang_minutes="):
        LogConfig(hang_minutes=minutes)
