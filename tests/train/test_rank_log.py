"""A process's log file: what it says, what it warns of, and why it ended."""

import ctypes
import faulthandler
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from franca.distributed import rank
from franca.train.__main__ import main
from franca.train.rank_log import SAID, RankLog, log_file
from franca.train.stopping import Interrupted
from franca.train.trainer import Trainer
from tests.warm import captured


def test_a_run_and_its_continuation_are_told_in_one_file(train: Callable[..., Trainer], tmp_path: Path) -> None:
    for _ in range(2):
        train("steps=2", "monitor.every=0")
    text = log_file(tmp_path / "run", rank()).read_text()
    assert text.count("rank 0 of 1, process") == 2
    assert text.index("WARNING: effective batch") < text.index("done: 2 steps") < text.index("continuing from step 2")
    assert text.rstrip().splitlines()[-1].partition("INFO ")[2].startswith("done: 2 steps")


@contextmanager
def opened(output: Path) -> Iterator[RankLog]:
    """The log of a single process, in its folder from the first moment."""
    with RankLog() as log:
        log.open(output)
        yield log


def failing(number: float) -> float:
    return 1 / number


def test_an_error_is_recorded_with_its_traceback_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path):
        failing(0)
    text = log_file(tmp_path, 0).read_text()
    assert "ERROR this ended the run:" in text
    assert "in failing" in text
    assert "ZeroDivisionError: division by zero" in text


def test_a_run_that_is_stopped_has_not_failed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), opened(tmp_path):
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
    with opened(tmp_path):
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
    with opened(tmp_path):
        with files_of_at_most(0):
            SAID.info("lost")
        SAID.info("kept")
    text = log_file(tmp_path, 0).read_text()
    assert "lost" not in text
    assert "INFO kept" in text


def crashing(folder: Path) -> None:
    with RankLog() as log:
        log.open(folder)
        ctypes.string_at(0)


def test_a_crash_of_the_interpreter_leaves_its_stacks(tmp_path: Path) -> None:
    """In a process of its own, which the crash ends."""
    done = captured(crashing, tmp_path, folder=tmp_path)
    assert done.returncode < 0
    text = log_file(tmp_path, 0).read_text()
    assert "Fatal Python error: Segmentation fault" in text
    assert "in crashing" in text
    assert faulthandler.is_enabled(), "pytest's own, which stays"


def test_what_comes_before_the_folder_is_known_is_in_the_file_too(tmp_path: Path) -> None:
    with RankLog(3, 8) as log:
        logging.getLogger("franca.data").warning("early")
        assert not any(tmp_path.iterdir())
        log.open(tmp_path)
        SAID.info("late")
    text = log_file(tmp_path, 3).read_text()
    assert text.index("rank 3 of 8, process") < text.index("WARNING early") < text.index("INFO late")


def test_an_early_error_goes_where_the_run_lives_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), RankLog(1, 2, home=lambda _: tmp_path) as log, log.recording():
        failing(0)
    text = log_file(tmp_path, 1).read_text()
    assert text.count("ERROR this ended the run:") == 1
    assert "in failing" in text
    assert capsys.readouterr().err == ""


def test_a_run_that_fails_before_its_first_step_says_so_in_its_log_and_leaves_other_folders_alone(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(tiny_file), "steps=2", "monitor.every=0", f"output={tmp_path / 'run'}"]
    assert main(command) == 0
    log = log_file(tmp_path / "run", 0)
    assert "this ended the run" not in log.read_text()
    missing = f"data.path={tmp_path / 'unmounted'}"
    config = tmp_path / "run" / "config.yaml"
    recorded = re.sub(r"(?m)^  path: .*$", f"  path: {tmp_path / 'unmounted'}", config.read_text(), count=1)
    config.write_text(recorded)  # the run's own folder of images is gone
    assert main([*command, missing]) == 2
    text = log.read_text().partition("this ended the run:")[2]
    assert "Traceback" in text
    assert "unmounted" in text
    assert main([*command, missing, f"output={tmp_path / 'new'}"]) == 2
    assert not (tmp_path / "new").exists(), "free for the corrected command"
    assert main([*command, "optimizer.lr=0.5"]) == 2
    assert log.read_text().count("this ended the run:") == 1, "another run's error is not this one's"


def test_an_early_error_of_a_run_without_folder_is_shown_with_its_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, count in ((1, 2), (0, 1)):
        with pytest.raises(ZeroDivisionError), RankLog(number, count):
            failing(0)
    shown = capsys.readouterr().err
    assert shown.startswith("rank 1 of 2 on ")
    assert shown.endswith(": ZeroDivisionError: division by zero\n")
    assert shown.count("\n") == 1, "a single process shows its errors itself"


def speaking(folder: Path) -> None:
    speaker = logging.getLogger("franca.data")
    with RankLog() as log:
        log.open(folder)
        speaker.info("quiet")
        speaker.warning("loud")
    speaker.info("later")
    speaker.warning("at last")


def test_outside_the_command_line_records_reach_the_file_and_warnings_the_terminal(tmp_path: Path) -> None:
    """In a process that has set up no logging."""
    done = captured(speaking, tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["loud", "at last"]
    text = log_file(tmp_path, 0).read_text()
    assert "INFO quiet" in text
    assert "WARNING loud" in text


def test_a_terminal_that_wants_warnings_alone_gets_no_more(tmp_path: Path) -> None:
    root, screen = logging.getLogger(), io.StringIO()
    shown, before = logging.StreamHandler(screen), root.level
    root.addHandler(shown)
    root.setLevel(logging.WARNING)
    try:
        with opened(tmp_path):
            logging.getLogger("franca.data").info("quiet")
            logging.getLogger("franca.data").warning("loud")
        assert (root.level, shown.level) == (logging.WARNING, logging.NOTSET)
    finally:
        root.removeHandler(shown)
        root.setLevel(before)
    assert screen.getvalue() == "loud\n"
    assert "INFO quiet" in log_file(tmp_path, 0).read_text()
