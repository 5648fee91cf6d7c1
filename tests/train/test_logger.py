"""Where the numbers go."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from franca.metrics import read_metrics
from franca.train import logger
from franca.train.config import TrainConfig
from franca.train.logger import LogConfig, MetricsFile, RunLogger
from franca.train.trackers import MissingTracker, TrackerRefused
from franca.train.trainer import Trainer
from tests.warm import Command, captured

ROOT = Path(__file__).resolve().parents[2]
LINE = {"step": 10, "loss": 1.25, "images_per_second": 31.9, "data_wait": 0.257, "tflops": 0.1234, "memory_gb": 1.876}


def test_metrics_are_json_lines_that_come_back(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl", resumed_at=0)
    for line in (LINE, {"step": 20, "verdict": "healthy", "loss": 0.1 + 0.2}):
        metrics.write(line)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line) for line in text.splitlines()] == read_metrics(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl")[1]["loss"] == 0.1 + 0.2
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_a_resumed_file_drops_later_lines_and_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "loss": 3.5}\n{"step": 2, "knn": 7}\n{"step": 3}\n{"step": 4, "lo')
    metrics = MetricsFile(file, resumed_at=2)
    metrics.write({"step": 3, "new": True})
    assert (
        file.read_text() == '{"step": 1}\n{"step": 2, "loss": 3.5}\n{"step": 2, "knn": 7}\n{"step": 3, "new": true}\n'
    )


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "m", 0).write({"step": 1, "a": float("nan"), "b": float("-inf"), "c": 1.0})
    assert (tmp_path / "m").read_text() == '{"step": 1, "a": null, "b": null, "c": 1.0}\n'


def test_lines_wait_while_the_disk_is_full(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = MetricsFile(tmp_path / "m", 0)
    metrics.write({"step": 1})
    with files_of_at_most(20):
        metrics.write({"step": 2})
        metrics.write({"step": 3})
        assert (tmp_path / "m").read_text() == '{"step": 1}\n', "half a line would spoil the next one"
        with pytest.raises(OSError, match=r"File too large|No space"):
            metrics.flush()
    metrics.write({"step": 4})
    assert [line["step"] for line in read_metrics(tmp_path / "m")] == [1, 2, 3, 4]


def test_what_waits_is_written_by_a_flush_or_dropped_with_its_steps(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = MetricsFile(tmp_path / "m", 0)
    with files_of_at_most(0):
        metrics.write({"step": 1})
    metrics.flush()
    with files_of_at_most(0):
        metrics.write({"step": 2})
    metrics.drop_after(1)
    metrics.write({"step": 2, "again": 1})
    assert read_metrics(tmp_path / "m") == [{"step": 1}, {"step": 2, "again": 1}]


def quiet_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> tuple[RunLogger, StringIO]:
    screen = StringIO()
    monkeypatch.setattr(
        logger, "Console", lambda **options: Console(file=screen, force_terminal=terminal, width=120, **options)
    )
    return RunLogger(tmp_path, LogConfig(), steps=50, resumed_at=0, described={}), screen


def test_without_a_terminal_progress_is_plain_lines_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: clock[0])
    log, screen = quiet_logger(tmp_path, monkeypatch, terminal=False)
    with log:
        for step, now in ((10, 100.0), (20, 105.0), (30, 111.0)):
            clock[0] = now
            log.advance(step)
            log.show(LINE | {"step": step})
        log.say("saved [not markup] " + "x" * 200)
        log.show(LINE | {"step": 40})
    lines = screen.getvalue().splitlines()
    chief = "loss 1.250  32 images/s  26% waiting for data  0.123 TFLOP/s  1.88 GB"
    assert lines[:2] == [f"step {step}  {chief}" for step in (10, 30)]
    assert lines[2] == "saved [not markup] " + "x" * 200, "messages are neither wrapped nor read as markup"
    assert "\x1b" not in screen.getvalue()


def test_a_step_without_a_finite_loss_is_shown_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, screen = quiet_logger(tmp_path, monkeypatch, terminal=False)
    log.show({name: value for name, value in LINE.items() if name != "loss"} | {"step": 40})
    assert "step 40  no finite loss  32 images/s" in screen.getvalue()


def test_a_terminal_shows_a_bar_with_loss_speed_waiting_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, screen = quiet_logger(tmp_path, monkeypatch, terminal=True)
    with log:
        log.advance(10)
        log.show(LINE)
        log.progress.refresh()
    for words in ("step 10/50", "loss 1.250", "32 images/s", "26% waiting for data", "0.123 TFLOP/s", "left"):
        assert words in screen.getvalue()


def test_tensorboard_gets_every_number(train: Callable[..., Trainer], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train("steps=3", "log.tensorboard=true")
    train("steps=3", "log.tensorboard=true")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])
    numbers = {name for line in lines for name in line if name != "step"}
    assert numbers <= set(events.Tags()["scalars"])
    assert "effective_rank" in events.Tags()["scalars"]
    assert "verdict" not in events.Tags()["scalars"]


def test_tensorboard_shows_the_steps_after_a_return_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLogger(tmp_path, LogConfig(tensorboard=True), steps=9, resumed_at=0, described={}) as log:
        write_with_a_return(log)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


@pytest.mark.slow
def test_wandb_gets_the_steps_after_a_return_too(tmp_path: Path) -> None:
    """wandb itself, without network: it would drop lines whose step is behind its own."""
    pytest.importorskip("wandb")
    done = captured(return_with_wandb, tmp_path, folder=ROOT, environment=os.environ | {"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    (recorded,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = recorded.read_bytes()
    assert all(json.dumps(loss).encode() in content for loss in (1.5, 2.5, 3.5, 4.5, 30.25, 40.25))
    assert "must be monotonically" not in done.stderr + done.stdout


def return_with_wandb(folder: Path) -> None:
    with RunLogger(folder, LogConfig(wandb_project="mine"), steps=9, resumed_at=0, described={}) as log:
        write_with_a_return(log, (1.5, 2.5, 3.5, 4.5, 30.25, 40.25))


def write_with_a_return(log: RunLogger, losses: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 30.0, 40.0)) -> None:
    """Steps 1 to 4, then 3 and 4 again."""
    for number, (step, loss) in enumerate(zip((1, 2, 3, 4, 3, 4), losses, strict=True)):
        if number == 4:
            log.go_back(2)
        log.write({"step": step, "loss": loss})


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("wandb", LogConfig(wandb_project="mine"), r"log\.wandb_project=mine needs wandb: .*franca\[wandb\]"),
        (
            "torch.utils.tensorboard",
            LogConfig(tensorboard=True),
            r"log\.tensorboard=true needs .*franca\[tensorboard\]",
        ),
    ],
)
def test_a_missing_tracker_is_named_with_its_extra(
    package: str, options: LogConfig, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingTracker, match=extra):
        RunLogger(tmp_path, options, steps=1, resumed_at=0, described={})


def offline_run(*arguments: str) -> str:
    """A training command as a user without login starts it; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = Command("franca.train", ["log.wandb_project=mine", *arguments])
    done = captured(command, folder=ROOT, environment=environment | {"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_wandb_offline_keeps_every_line_without_login_or_network(tiny_file: Path, tmp_path: Path) -> None:
    """wandb itself: its files of both stretches, under the name of one run, hold the numbers that metrics.jsonl has."""
    pytest.importorskip("wandb")
    output = tmp_path / "run"
    arguments = ["--config", str(tiny_file), "steps=4", f"output={output}"]
    offline_run(*arguments)
    stop_at(2, output)
    said = offline_run(*arguments)
    assert "continuing from step 2" in said
    assert "`resume` will be ignored" not in said
    first, second = sorted((output / "wandb").glob("offline-run-*"))
    names = {folder.name.rpartition("-run-")[2] for folder in (first, second)}
    assert len(names) == 1, "wandb sync makes one run of them"
    lines = [line for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
    for folder, expected in ((first, [1, 2, 3, 4]), (second, [3, 4])):
        (recorded,) = folder.glob("*.wandb")
        content = recorded.read_bytes()
        assert [line["step"] for line in lines if json.dumps(line["loss"]).encode() in content] == expected


def stop_at(step: int, output: Path) -> None:
    """Make a finished run one that was stopped there."""
    for folder in (output / "checkpoints").glob("step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)


def test_wandb_without_a_login_is_one_line_with_a_way_out(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = type(sys)("wandb")
    wandb.Error = type("Error", (Exception,), {})  # type: ignore[attr-defined]

    def refuse(**_: object) -> None:
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    wandb.init = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(TrackerRefused, match=r"log\.wandb_project=mine: No API key .* WANDB_MODE=offline"):
        Trainer(tiny("log.wandb_project=mine")).run()


def test_wandb_gets_every_number_and_the_configuration(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that remembers, for online wandb wants the network."""
    calls: list[tuple[str, object]] = []
    axes: dict[str, str] = {}

    class Run:
        def define_metric(self, name: str, step_metric: str = "") -> None:
            axes[name] = step_metric

        def log(self, numbers: dict[str, float]) -> None:
            calls.append(("log", numbers))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**options: object) -> Run:
        calls.append(("init", options))
        return Run()

    wandb = type(sys)("wandb")
    wandb.Error = Exception  # type: ignore[attr-defined]
    wandb.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    Trainer(tiny("steps=2", "log.wandb_project=mine", "monitor.every=0")).run()
    (first, options), *logged, (last, _) = calls
    assert (first, last) == ("init", "finish")
    assert isinstance(options, dict)
    assert (options["project"], options["name"], options["resume"]) == ("mine", "run", "allow")
    assert options["config"]["optimizer.lr"] == 1e-3
    assert axes == {"step": "", "*": "step"}
    assert [numbers["step"] for _, numbers in logged if "loss" in numbers] == [1, 2]  # type: ignore[index,operator]
    Trainer(tiny("steps=2", "log.wandb_project=mine", "monitor.every=0")).run()
    Trainer(tiny("steps=2", "log.wandb_project=mine", f"output={tmp_path / 'other' / 'run'}")).run()
    first, again, other = (options["id"] for name, options in calls if name == "init")  # type: ignore[index]
    assert first == again, "the same run goes on"
    assert first != other, "another folder of the same name is another run"
