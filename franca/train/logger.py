"""Where a run's numbers go: metrics.jsonl always, the terminal, and TensorBoard or wandb when asked for."""

import errno
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from franca.files import replace_text, sync
from franca.metrics import read_metrics
from franca.train.rank_log import SAID
from franca.train.trackers import TensorBoardTracker, Tracker, WandbTracker

logger = logging.getLogger(__name__)


@dataclass
class LogConfig:
    """How often and where numbers are written, and when silence is worth a word."""

    every: int = 10  # steps
    tensorboard: bool = False  # event files in <output>/tensorboard
    wandb_project: str = ""  # empty: no wandb
    hang_minutes: float = 10.0  # without a step until every process writes where it stands into its log; 0: never

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every={self.every} must be at least 1")
        if not 0 <= self.hang_minutes < math.inf:
            raise ValueError(f"log.hang_minutes={self.hang_minutes} must be a number of minutes, or 0 for no watch")


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line, each with its ``step``. A resumed run continues where it resumed."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        self.drop_after(resumed_at)

    def drop_after(self, step: int) -> None:
        """Forget the lines of later steps, which the run will write again, and a last line that was cut off."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        replace_text(self.path, text)
        self._unwritten = b""

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. When the disk is full it waits in memory for the next line, or for :meth:`flush`."""
        self._unwritten += (json.dumps({k: _as_json(v) for k, v in line.items()}) + "\n").encode()
        try:
            self._append()
        except OSError as error:
            logger.warning("WARNING: %s can't be written (%s); its lines wait in memory", self.path, error)

    def flush(self) -> None:
        """All lines onto the disk; a state may be saved once this returns. Raises OSError."""
        self._append()
        sync(self.path)

    def _append(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(self._unwritten) < len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise
        self._unwritten = b""


def _as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def chief_numbers(line: dict[str, Any]) -> str:
    """A line of numbers, short enough for a terminal."""
    share = f" ({line['utilisation']:.0%} of peak)" if "utilisation" in line else ""
    return "  ".join(
        [
            f"loss {line['loss']:.3f}" if "loss" in line else "no finite loss",
            f"{line['images_per_second']:.0f} images/s",
            f"{line['data_wait']:.0%} waiting for data",
            f"{line['tflops']:.3g} TFLOP/s{share}",
            f"{line['memory_gb']:.3g} GB",
        ]
    )


class RunLogger:
    """Everything a trainer says: lines of numbers, a progress bar, and messages that stay on the screen."""

    def __init__(self, output: Path, config: LogConfig, steps: int, resumed_at: int, described: dict[str, Any]) -> None:
        self.metrics = MetricsFile(output / "metrics.jsonl", resumed_at)
        self.trackers: list[Tracker] = []
        if config.tensorboard:
            self.trackers.append(TensorBoardTracker(output / "tensorboard", resumed_at))
        if config.wandb_project:
            self.trackers.append(WandbTracker(config.wandb_project, output, described))
        self.console = Console(highlight=False)
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=300,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("train", total=steps, completed=resumed_at, status="")
        self.last_plain_line = 0.0

    def __enter__(self) -> "RunLogger":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.close()

    def write(self, line: dict[str, Any]) -> None:
        """Record a line of numbers everywhere."""
        self.metrics.write(line)
        for tracker in self.trackers:
            tracker.write(line)

    def flush(self) -> None:
        """Every line onto the disk. Raises OSError."""
        self.metrics.flush()

    def go_back(self, step: int) -> None:
        """Forget what was written after ``step``: the run returns there."""
        self.metrics.drop_after(step)
        for tracker in self.trackers:
            tracker.go_back(step)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.progress.update(self.bar, completed=step)

    def show(self, line: dict[str, Any]) -> None:
        """Put a line's chief numbers beside the bar; without a terminal, print them at most every ten seconds."""
        status = chief_numbers(line)
        self.progress.update(self.bar, status=status)
        if self.progress.disable and time.monotonic() - self.last_plain_line > 10.0:
            self.last_plain_line = time.monotonic()
            self.say(f"step {line['step']}  {status}")

    def say(self, message: str) -> None:
        """Print a message that stays above the bar."""
        self.console.print(message, markup=False, soft_wrap=True)
        SAID.info(message)


class SilentLogger:
    """What the ranks that don't speak use in place of a :class:`RunLogger`."""

    def write(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def go_back(self, step: int) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def show(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""
