"""The shipped recipe that everyone has the images of learns as it did where it was recorded."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.reproduce.__main__ import main
from franca.reproduce.curve import steps_of
from franca.reproduce.recipe import find_recipe
from franca.reproduce.record import read_record
from franca.train.build import claim_run_folder
from franca.train.config import load_config
from franca.train.logger import MetricsFile

ROOT = Path(__file__).resolve().parents[2]
UNTIL = 60  # of 260 steps
SEED = 3  # not recorded: a recorded one is part of the mean, and is bound to pass where it was recorded


class Replayed:
    """In place of a TrainingProcess: writes the recorded curve of seed 0, up to ``last`` and then no further change."""

    last = UNTIL

    def __init__(self, arguments: list[str], say: Callable[[str], None]) -> None:
        self.config = load_config(arguments[1], arguments[2:])

    def run(self, enough: Callable[[], bool]) -> None:
        """All at once."""
        record = read_record(find_recipe("quickstart").record)
        curve = record.seeds[0]
        metrics = MetricsFile(claim_run_folder(self.config) / "metrics.jsonl", self.config.steps)
        for step in range(self.config.log.every, UNTIL + 1, self.config.log.every):
            point = next(end for end in steps_of(curve) if end >= min(step, self.last))
            losses = {name: values[point] for name, values in curve.items() if point in values}
            metrics.write({"step": step, "images": step, "images_per_second": 1.0} | losses)
        assert enough()


@pytest.mark.parametrize(("last", "status"), [(UNTIL, 0), (20, 1)])
def test_a_run_that_stops_learning_differs_from_the_shipped_record(
    last: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Replayed, "last", last)
    monkeypatch.setattr("franca.reproduce.run.TrainingProcess", Replayed)
    monkeypatch.setattr("franca.reproduce.command.can_draw", lambda: False)
    arguments = ["quickstart", "--until", str(UNTIL), f"seed={SEED}", f"output={tmp_path / 'run'}"]
    assert main(arguments) == status
    assert ["reproduced: ", "differs: "][status] in capsys.readouterr().out


@pytest.mark.slow
def test_the_quickstart_is_reproduced(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "franca.reproduce",
        "quickstart",
        "--until",
        str(UNTIL),
        f"seed={SEED}",
        f"output={tmp_path / 'run'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"reproduced: quickstart (seed {SEED}, its first {UNTIL} of 260 steps)" in done.stdout
    result = json.loads((tmp_path / "run" / "reproduce.json").read_text())
    assert result["verdict"] == "reproduced"
    assert {point["step"] for point in result["points"]} == {20, 40, 60}
