"""kill -9 of any rank at any moment: the same command goes on, and the numbers are those of a run left alone."""

from pathlib import Path

import pytest

from tests.warm import Command, captured

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_three_kills_leave_no_trace(images: Path) -> None:
    """As anyone can do it thirty times: ``python scripts/kill_ranks.py``."""
    arguments = ["--kills", "3", "parallel.strategy=shard", "data.source=folder", f"data.path={images}"]
    done = captured(Command("scripts/kill_ranks.py", arguments), folder=ROOT, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills on 2 ranks: the numbers of the undisturbed run" in done.stdout
