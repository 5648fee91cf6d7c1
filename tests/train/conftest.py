"""The tiny run, and what is compared between two of them."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.metrics import read_metrics
from franca.train.checkpoint import leaves
from franca.train.config import TrainConfig, load_config
from franca.train.trainer import Trainer
from franca.train.vitals import Vitals
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The tiny run as a YAML file; its output folder is left to the command line."""
    return write_tiny(tmp_path_factory.mktemp("configs") / "tiny.yaml", images)


@pytest.fixture
def tiny(tiny_file: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """`tiny("steps=3", ...)`: the tiny run with overrides, in the folder `run` of the test."""
    return lambda *overrides: load_config(tiny_file, [f"output={tmp_path / 'run'}", *overrides])


@pytest.fixture
def train(tiny: Callable[..., TrainConfig]) -> Callable[..., Trainer]:
    """`train("steps=3", ...)`: the tiny run from wherever it stands to its end."""

    def run(*overrides: str) -> Trainer:
        trainer = Trainer(tiny(*overrides))
        trainer.run()
        return trainer

    return run


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Lines of a run's metrics.jsonl, without what clock and machine say."""

    def read(output: Path) -> list[dict[str, Any]]:
        lines = read_metrics(output / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name not in Vitals.names()} for line in lines]

    return read


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Trainer], dict[str, Tensor]]:
    """Copies of all that a trainer would save."""
    return lambda trainer: {name: t.clone() for name, t in leaves(trainer.state.tensors()).items()}


@pytest.fixture(scope="session")
def differing() -> Callable[[dict[str, Tensor], dict[str, Tensor]], list[str]]:
    """Names of the tensors that are not the same bit for bit."""

    def compare(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
        assert first.keys() == second.keys()
        return [name for name in first if not torch.equal(first[name], second[name])]

    return compare


@pytest.fixture(scope="session")
def files_of_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """While entered, a file that grows beyond so many bytes can't be written, by the system's own error: a full disk.

    A test with a small limit takes `capsys`, for pytest else keeps what is printed in a file.
    """

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, earlier)

    return limit
