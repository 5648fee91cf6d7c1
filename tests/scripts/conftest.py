"""The tiny training run, without images."""

from pathlib import Path

import pytest

from franca.train.config import TrainConfig, load_config
from tests.tiny import write_tiny


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """On the CPU."""
    return load_config(write_tiny(tmp_path / "tiny.yaml", tmp_path, "device=cpu"))
