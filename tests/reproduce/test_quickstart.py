"""The shipped recipe that everyone has the images of learns as it did where it was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNTIL = 60  # of 260 steps
SEED = 3  # not recorded: a recorded one is part of the mean, and is bound to pass where it was recorded


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
