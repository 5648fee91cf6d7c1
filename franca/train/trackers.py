"""Services that show a run's numbers as curves: TensorBoard and wandb."""

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol


class MissingTracker(ImportError):
    """A tracker was asked for whose package is not installed."""


class TrackerRefused(RuntimeError):
    """A tracker was asked for whose service can't be used, for want of a login or a network."""


class Tracker(Protocol):
    """A service that shows curves."""

    def write(self, line: dict[str, Any]) -> None:
        """Take over the numbers of one line."""

    def go_back(self, step: int) -> None:
        """The run returns to this step; lines of later ones will come again."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoardTracker:
    """Event files for ``tensorboard --logdir``; needs the extra ``tensorboard``. Steps after ``resumed_at`` go."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingTracker("log.tensorboard=true needs TensorBoard: pip install 'franca[tensorboard]'") from error
        self.open = lambda step: SummaryWriter(str(folder), purge_step=step + 1)
        self.writer = self.open(resumed_at)

    def write(self, line: dict[str, Any]) -> None:
        """Write every number at the line's step."""
        for name, value in _numbers(line).items():
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def go_back(self, step: int) -> None:
        """Later steps are not shown any more."""
        self.writer.close()
        self.writer = self.open(step)

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandbTracker:
    """A wandb run that continues when the training run does; needs the extra ``wandb``.

    With WANDB_MODE=offline it needs neither login nor network. Each start then leaves a folder of its own in
    <output>/wandb; all bear the same run's name, and ``wandb sync`` makes one run of them.

    wandb takes nothing back, and by its own count of steps would drop what comes again: so the step is a number of the
    line, and the axis of all others. Of steps that a run made twice, both values are shown.
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
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any]) -> None:
        """Send every number with the line's step."""
        self.run.log(_numbers(line) | {"step": line["step"]})

    def go_back(self, step: int) -> None:
        """Nothing: see above."""

    def close(self) -> None:
        """Send what is left and end the run."""
        self.run.finish()


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
