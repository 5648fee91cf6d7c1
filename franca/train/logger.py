"""Where a run's numbers go: metrics.jsonl always, the terminal, and TensorBoard or wandb when asked for."""

import errno
import hashlib
import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from franca.files import replace_text, sync
from franca.metrics import read_metrics
from franca.train.rank_log import SAID

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


class MissingTracker(ImportError):
    """A tracker was asked for whose package is not installed."""


class TrackerRefused(RuntimeError):
    """A tracker was asked for whose service can't be used, for want of a login or a network."""


class Tracker(Protocol):
    """A service that shows curves."""

    def write(self, line: dict[str, Any]) -> None:
        """Take over the numbers of one line."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoardTracker:
    """Event files for ``tensorboard --logdir``; needs the extra ``tensorboard``. Steps after ``resumed_at`` go."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingTracker("log.tensorboard=true needs TensorBoard: pip install 'franca[tensorboard]'") from error
        self.writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Write every number at the line's step."""
        for name, value in _numbers(line).items():
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandbTracker:
    """A wandb run that continues when the training run does; needs the extra ``wandb``.

    With WANDB_MODE=offline it needs neither login nor network. Each start then leaves a folder of its own in
    <output>/wandb; all bear the same run's name, and ``wandb sync`` makes one run of them.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingTracker(f"log.wandb_project={project} needs wandb: pip install 'franca[wandb]'") from error
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # two runs may end in the same name
        offline = os.environ.get("WANDB_MODE") == "offline"  # there wandb would warn that it can't resume
        try:
            self.run = wandb.init(
                project=project,
                id=f"{folder.name}-{place}",
                name=folder.name,
                dir=str(folder),
                config=config,
                resume=None if offline else "allow",
            )
        except wandb.Error as error:
            raise TrackerRefused(
                f"log.wandb_project={project}: {error} Or set WANDB_MODE=offline, and upload later with wandb sync"
            ) from error

    def write(self, line: dict[str, Any]) -> None:
        """Send every number at the line's step."""
        self.run.log(_numbers(line), step=line["step"])

    def close(self) -> None:
        """Send what is left and end the run."""
        self.run.finish()


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}


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
