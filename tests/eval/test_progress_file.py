"""What survives an interruption, and what doesn't outlive its use."""

from pathlib import Path

import pytest
import torch

from franca.eval.protocols import progress_file
from franca.eval.protocols.progress_file import ProgressFile


def stopped(path: Path) -> None:
    with ProgressFile(path) as progress:
        assert progress.get("done") is None
        progress.keep("done", (3, torch.arange(4)))
        raise KeyboardInterrupt


def test_an_interrupted_run_finds_what_it_had(tmp_path) -> None:
    path = tmp_path / "progress"
    with pytest.raises(KeyboardInterrupt):
        stopped(path)
    with ProgressFile(path) as progress:
        done, values = progress.get("done")
        assert done == 3
        assert values.tolist() == [0, 1, 2, 3]
    assert not path.exists(), "what is finished leaves nothing behind"


def test_a_kill_loses_only_what_is_newer_than_the_last_write(tmp_path, monkeypatch) -> None:
    killed = ProgressFile(tmp_path / "progress").__enter__()  # and never leaves it
    monkeypatch.setattr(progress_file, "SECONDS", 0.0)
    killed.keep("step", 1)
    monkeypatch.setattr(progress_file, "SECONDS", 1e9)
    killed.keep("step", 2)
    with ProgressFile(tmp_path / "progress") as progress:
        assert progress.get("step") == 1
