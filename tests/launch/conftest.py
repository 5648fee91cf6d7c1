"""A run that is over in seconds, for launchers to start."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny

QUICK = (
    *("device=cpu", "data.batch_size=2", "checkpoint.every=100000", "monitor.every=0"),
    *("data.crops.global_size=28", "data.crops.local_size=14", "data.crops.local_count=1"),
)


@pytest.fixture
def tiny(tmp_path: Path, images: Path) -> Path:
    """The tiny run as a YAML file; it trains into the folder `run` of the test."""
    return write_tiny(tmp_path / "tiny.yaml", images, *QUICK, f"output={tmp_path / 'run'}")
