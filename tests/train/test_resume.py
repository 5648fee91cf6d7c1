"""A run that is stopped at any moment, and started again by the same command, is the run that was never stopped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.hub.checkpoint import CheckpointError
from franca.train.__main__ import main
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig
from franca.train.logger import MetricsFile
from franca.train.stopping import Interrupted
from franca.train.trainer import Trainer

# Means over lines that span saves, a monitor and accumulated batches: all that a resumed run could get wrong.
FULL = (
    *("steps=7", "checkpoint.every=3", "log.every=2", "accumulate=2", "model.drop_path_rate=0.4"),
    *("monitor.every=2", "monitor.patience=2", "monitor.first_verdict=4"),
)
PLAIN = ("steps=7", "checkpoint.every=3")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
Lines = list[dict[str, Any]]
Outcome = tuple[Lines, dict[str, Tensor]]


@pytest.fixture
def outcome(
    tiny: Callable[..., TrainConfig],
    lines_of: Callable[[Path], Lines],
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    tmp_path: Path,
) -> Callable[..., Outcome]:
    """`outcome(name, *overrides)`: run (or go on with) the run in folder `name`; its lines and everything saved."""

    def run(name: str, *overrides: str) -> Outcome:
        output = tmp_path / name
        trainer = Trainer(tiny(f"output={output}", *overrides))
        trainer.run()
        return lines_of(output), tensors_of(trainer)

    return run


def stop_after(trainer: Trainer, steps: int, number: int) -> None:
    """The signal comes while step ``steps`` is being computed."""
    step = trainer.step

    def step_and_signal(batches: Any) -> Any:
        result = step(batches)
        if trainer.state.step == steps:
            os.kill(os.getpid(), number)
        return result

    trainer.step = step_and_signal  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("number", "steps", "overrides"),
    [
        (signal.SIGTERM, 5, FULL),
        (signal.SIGINT, 3, FULL),
        (signal.SIGTERM, 1, PLAIN),
        (signal.SIGTERM, 4, (*PLAIN, "data.workers=2")),
    ],
)
def test_a_signal_and_the_same_command_give_the_same_run_bit_for_bit(
    number: int,
    steps: int,
    overrides: tuple[str, ...],
    tiny: Callable[..., TrainConfig],
    outcome: Callable[..., Outcome],
    differing: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    trainer = Trainer(tiny(f"output={tmp_path / 'stopped'}", *overrides))
    stop_after(trainer, steps, number)
    earlier = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped at step {steps} by {number.name}; the same command continues"):
        trainer.run()
    assert signal.getsignal(number) is earlier
    latest = trainer.checkpoints.latest()
    assert latest is not None
    assert latest.name == f"step_{steps:07d}", "the state at the signal is saved"

    lines, tensors = outcome("stopped", *overrides)
    expected_lines, expected = outcome("whole", *(o for o in overrides if "workers" not in o))
    assert lines == expected_lines
    assert differing(tensors, expected) == []


def test_the_first_steps_of_two_seeds_differ(outcome: Callable[..., Outcome]) -> None:
    """The comparisons above would notice: another seed is another run."""
    lines, _ = outcome("a", "steps=2")
    others, _ = outcome("b", "steps=2", "seed=1")
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    assert all(line["loss"] != other["loss"] for line, other in zip(lines, others, strict=True) if "loss" in line)


def test_stochastic_depth_is_drawn_anew_at_every_step(outcome: Callable[..., Outcome]) -> None:
    """Its draws follow from (seed, position in the data): with lr 0 only they, and the images, change the loss."""
    options = ("steps=3", "optimizer.lr=1e-30", "optimizer.min_lr=0", "teacher.momentum=1.0", "checkpoint.every=9")
    with_depth, _ = outcome("a", "model.drop_path_rate=0.5", *options)
    without, _ = outcome("b", *options)
    ratios = {a["loss"] / b["loss"] for a, b in zip(with_depth, without, strict=True) if "loss" in a}
    assert len(ratios) == 3
    assert 1.0 not in ratios


def test_a_signal_during_evaluation_stops_after_the_next_step_and_is_saved(
    tiny: Callable[..., TrainConfig], lines_of: Callable[[Path], Lines]
) -> None:
    def evaluate(_: Any) -> dict[str, float]:
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"score": 1.0}

    options = (*PLAIN, "evaluation.every=2", "evaluation.image_size=56")
    trainer = Trainer(tiny(*options), evaluate)
    with pytest.raises(Interrupted, match="stopped at step 3"):
        trainer.run()
    again = Trainer(tiny(*options), lambda _: {"score": 1.0})
    again.run()
    assert [line["step"] for line in lines_of(again.output) if "score" in line] == [2, 4, 6, 7]


def test_a_second_signal_stops_at_once(tiny: Callable[..., TrainConfig]) -> None:
    trainer = Trainer(tiny(*PLAIN))
    step = trainer.step

    def impatient(batches: Any) -> Any:
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(batches)

    trainer.step = impatient  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.checkpoints.latest() == trainer.output / "checkpoints" / "step_0000003"


def test_a_signal_in_the_last_step_lets_the_run_end(tiny: Callable[..., TrainConfig]) -> None:
    trainer = Trainer(tiny("steps=3"))
    stop_after(trainer, 3, signal.SIGTERM)
    trainer.run()
    assert trainer.checkpoints.latest() == trainer.output / "checkpoints" / "step_0000003"


def test_a_finished_run_is_left_as_it_is(
    outcome: Callable[..., Outcome], differing: Callable[..., list[str]], tmp_path: Path
) -> None:
    lines, tensors = outcome("run", "steps=3")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    again, same = outcome("run", "steps=3")
    assert again == lines
    assert differing(same, tensors) == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")} == files


def test_lines_are_neither_lost_nor_doubled_when_states_are_damaged(
    outcome: Callable[..., Outcome], differing: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The newest state is cut off: the run goes on from the one before, and its later lines are written once."""
    options = (*FULL, "checkpoint.keep_last=9")
    expected_lines, expected = outcome("run", *options)
    newest = tmp_path / "run" / "checkpoints" / "step_0000007"
    state = next(newest.glob("*.distcp"))
    state.write_bytes(state.read_bytes()[:100])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    lines, tensors = outcome("run", *options)
    assert lines == expected_lines
    assert differing(tensors, expected) == []


@pytest.mark.parametrize("limit", [30_000, 1500])
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    limit: int,
    tiny: Callable[..., TrainConfig],
    outcome: Callable[..., Outcome],
    lines_of: Callable[[Path], Lines],
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    differing: Callable[..., list[str]],
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """30,000 bytes: states can't be saved. 1,500: metrics.jsonl can't be written either. Both from step 2 to step 4."""
    trainer = Trainer(tiny(*FULL))
    step, full = trainer.step, files_of_at_most(limit)

    def step_on_a_full_disk(batches: Any) -> Any:
        if trainer.state.step == 1:
            full.__enter__()
        if trainer.state.step == 4:
            trainer.checkpoints.settle()  # step 3 meets the full disk, however late
            full.__exit__(None, None, None)
        return step(batches)

    trainer.step = step_on_a_full_disk  # type: ignore[method-assign]
    trainer.run()
    assert re.search(
        r"WARNING: could not save step 3 .*Training goes on|WARNING: .*(File too large|No space left)",
        capsys.readouterr().out,
    )
    assert ("metrics.jsonl can't be written" in caplog.text) == (limit < 2000)
    expected_lines, expected = outcome("whole", *FULL)
    assert lines_of(trainer.output) == expected_lines
    assert differing(tensors_of(trainer), expected) == []


def test_no_state_is_saved_whose_lines_are_not(
    tiny: Callable[..., TrainConfig],
    outcome: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines wait in memory from step 2 on, then the process dies: the run must go on from before them."""
    options = ("steps=7", "checkpoint.every=3")
    trainer = Trainer(tiny(*options))
    append, step = MetricsFile._append, trainer.step

    def append_at_first(self: MetricsFile) -> None:
        if trainer.state.step >= 2:
            raise OSError(28, "No space left on device")
        append(self)

    def die_at_last(batches: Any) -> Any:
        if trainer.state.step == 5:
            raise KeyboardInterrupt
        return step(batches)

    trainer.step = die_at_last  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "_append", append_at_first)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert "No space left on device. Training goes on" in capsys.readouterr().out
    assert trainer.checkpoints.latest() == trainer.output / "checkpoints" / "step_0000000"
    lines, _ = outcome("run", *options)
    assert lines == outcome("whole", *options)[0]


def test_a_disk_that_is_full_at_the_start_is_an_error_and_the_same_command_goes_on(
    tiny_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files_of_at_most: Callable[[int], AbstractContextManager[None]],
) -> None:
    command = ["--config", str(tiny_file), f"output={tmp_path / 'run'}", "steps=2"]
    for limit, file in ((100, "config.yaml"), (30_000, "step_0000000")):
        with files_of_at_most(limit):
            assert main(command) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(rf"error: .*{file}.*File too large.*\n", said)
    assert main(command) == 0


@pytest.mark.parametrize("failing", [0, 3])
def test_the_first_and_the_last_save_must_succeed(
    failing: int, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointFolder.save

    def full(self: CheckpointFolder, step: int, *rest: Any) -> Path:
        if step == failing:
            raise CheckpointError(f"could not save step {step}: No space left on device; earlier states are kept")
        return save(self, step, *rest)

    monkeypatch.setattr(CheckpointFolder, "save", full)
    trainer = Trainer(tiny("steps=3", "checkpoint.every=1"))
    with pytest.raises(CheckpointError, match=f"step {failing}.*No space left"):
        trainer.run()
    latest = trainer.checkpoints.latest()
    assert (latest.name if latest else None) == (None if failing == 0 else "step_0000002")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "seconds", "overrides"),
    [
        ("saves", 0.0, (*FULL, "steps=21")),
        ("moments", 1.2, (*FULL, "steps=40", "checkpoint.every=5", "data.workers=2")),
    ],
)
def test_kill_9_at_any_moment_costs_nothing(
    how: str,
    seconds: float,
    overrides: tuple[str, ...],
    tiny_file: Path,
    outcome: Callable[..., Outcome],
    differing: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    command = ["--config", str(tiny_file), f"output={tmp_path / 'killed'}", *overrides]
    script = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, script, how, str(seconds), *command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=200,
    )
    found = re.search(r"killed (\d+) times, then exit code 0", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) >= (20 if how == "saves" else 2), "too few kills to prove anything"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order are other sums
    try:
        expected_lines, expected = outcome("whole", *overrides)
        lines, tensors = outcome("killed", *overrides)
    finally:
        torch.set_num_threads(threads)
    assert lines == expected_lines
    assert differing(tensors, expected) == []
