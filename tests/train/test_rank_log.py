"""A process's log file: what it says, what it warns of, and why it ended."""

import faulthandler
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from franca.distributed import rank
from franca.train.rank_log import SAID, RankLog, log_file
from franca.train.stopping import Interrupted
from franca.train.trainer import Trainer


def test_a_run_and_its_continuation_are_told_in_one_file(train: Callable[..., Trainer], tmp_path: Path) -> None:
    for _ in range(2):
        train("steps=2", "monitor.every=0")
    text = log_file(tmp_path / "run", rank()).read_text()
    assert text.count("rank 0 of 1, process") == 2
    assert text.index("WARNING: effective batch") < text.index("done: 2 steps") < text.index("continuing from step 2")
    assert text.rstrip().splitlines()[-1].partition("INFO ")[2].startswith("done: 2 steps")


def failing(number: float) -> float:
    return 1 / number


def test_an_error_is_recorded_with_its_traceback_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RankLog(tmp_path):
        failing(0)
    text = log_file(tmp_path, 0).read_text()
    assert "ERROR this ended the run:" in text
    assert "in failing" in text
    assert "ZeroDivisionError: division by zero" in text


def test_a_run_that_is_stopped_has_not_failed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), RankLog(tmp_path):
        raise Interrupted(15, 7)
    text = log_file(tmp_path, 0).read_text()
    assert "INFO stopped at step 7 by SIGTERM" in text
    assert "Traceback" not in text


def test_log_records_and_warnings_are_in_it_and_reach_whom_they_reached_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
    monkeypatch.setattr(warnings, "filters", [])  # pytest makes errors of them
    before = warnings.showwarning, list(logging.getLogger().handlers)
    with RankLog(tmp_path):
        logging.getLogger("franca.data").warning("a file is broken")
        SAID.info("step 1 is done")
        warnings.warn("mind the step", stacklevel=1)
    for logger in (logging.getLogger("franca.data"), SAID):
        logger.warning("too late")
    text = log_file(tmp_path, 0).read_text()
    for words in ("WARNING a file is broken", "INFO step 1 is done", "UserWarning: mind the step"):
        assert words in text
    assert "too late" not in text
    assert "a file is broken" in caplog.text
    assert shown == ["mind the step"]
    assert (warnings.showwarning, logging.getLogger().handlers) == before


def test_a_full_disk_costs_words_and_nothing_else(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    with RankLog(tmp_path):
        with files_of_at_most(0):
            SAID.info("lost")
        SAID.info("kept")
    text = log_file(tmp_path, 0).read_text()
    assert "lost" not in text
    assert "INFO kept" in text


def test_a_crash_of_the_interpreter_leaves_its_stacks(tmp_path: Path) -> None:
    """In a process of its own, which the crash ends."""
    program = (
        "import ctypes, sys; from pathlib import Path; from franca.train.rank_log import RankLog\n"
        "def crashing():\n    with RankLog(Path(sys.argv[1])):\n        ctypes.string_at(0)\n"
        "crashing()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert done.returncode < 0
    text = log_file(tmp_path, 0).read_text()
    assert "Fatal Python error: Segmentation fault" in text
    assert "in crashing" in text
    assert faulthandler.is_enabled(), "pytest's own, which stays"
