"""kill -9 of any rank at any moment: the same command goes on, and the numbers are those of a run left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_three_kills_leave_no_trace(images: Path) -> None:
    """As anyone can do it thirty times: ``python scripts/kill_ranks.py``."""
    command = [sys.executable, ROOT / "scripts" / "kill_ranks.py", "--kills", "3", "parallel.strategy=shard"]
    done = subprocess.run(
        [*command, "data.source=folder", f"data.path={images}"], capture_output=True, text=True, cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills on 2 ranks: the numbers of the undisturbed run" in done.stdout
