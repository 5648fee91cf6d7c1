"""Records and runs without training: curves that are written down, and a process that only writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from franca.reproduce import run
from franca.reproduce.curve import LOSSES, Curve
from franca.reproduce.record import Record
from franca.reproduce.tolerance import rule_of, tolerances
from franca.train.build import claim_run_folder
from franca.train.config import load_config
from franca.train.logger import MetricsFile
from tests.tiny import write_tiny

FACTS = {"commit": "0", "torch": "0", "device": "CPU", "precision": "fp32", "images": 20, "images_hash": "0"}
STEPS = 40


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """`make_record(curve, curve, …)`: the record of these curves as seeds 0, 1, …; or with tolerances given."""

    def make(*curves: Curve, **given: float) -> Record:
        seeds = dict(enumerate(curves))
        return Record(
            *("some", dict(FACTS), 1.0, "nothing", {"steps": STEPS}),
            *(rule_of(given), tolerances(seeds, given), seeds),
        )

    return make


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Path:
    """A recipe of 40 steps with 20 points a quantity, never trained: its file."""
    return write_tiny(tmp_path / "some.yaml", images, f"steps={STEPS}")


def pretended_loss(seed: int, step: int, lr: float) -> float:
    """What a run would have: it falls with the learning rate, and seeds lie a hundredth apart."""
    return 5.0 - 1000 * lr * step / STEPS + 0.01 * ((seed * 7 + step * (seed + 3)) % 5 - 2)


class PretendedProcess:
    """In place of a TrainingProcess: claims the folder and writes the lines that a run would, faster."""

    error: Exception | None = None  # raised at half of the run
    lr: float | None = None  # what it learns with, whatever it is told
    constant: Mapping[str, float] = {}  # quantities that are this at every step, in place of the loss
    starts, stops = 0, 0

    def __init__(self, arguments: list[str], say: Callable[[str], None]) -> None:
        self.config = load_config(arguments[1], arguments[2:])

    def run(self, enough: Callable[[], bool]) -> None:
        """Go on behind the last line."""
        type(self).starts += 1
        output = claim_run_folder(self.config)
        metrics = MetricsFile(output / "metrics.jsonl", STEPS)
        lr = self.config.optimizer.lr if self.lr is None else self.lr
        done = run.read_metrics(metrics.path)
        for step in range(len(done) + 1, STEPS + 1):
            if step == STEPS // 2 and self.error:
                raise self.error
            loss = pretended_loss(self.config.seed, step, lr)
            line: dict[str, Any] = {"step": step, "images": 4 * step, "images_per_second": 2.0}
            metrics.write(line | dict.fromkeys(LOSSES, loss) | self.constant)
            if enough():
                type(self).stops += 1
                return


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[PretendedProcess]:
    """The class that stands in for the training process; a test sets its attributes."""
    own = type("Pretended", (PretendedProcess,), {})
    monkeypatch.setattr(run, "TrainingProcess", own)
    return own
