"""Real runs of a tiny network: a further seed is reproduced, a run that is broken somewhere differs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from franca.metrics import read_metrics
from franca.reproduce.comparison import agreements, points_of
from franca.reproduce.curve import Curve, curve_of, window_of
from franca.reproduce.record import Record
from franca.train.config import load_config
from franca.train.trainer import Trainer
from tests.tiny import write_tiny

SETTINGS = (
    *("steps=40", "log.every=4", "monitor.every=0", "checkpoint.every=100000", "data.batch_size=16"),
    *("data.crops.global_size=28", "data.crops.local_size=14", "data.crops.local_count=1", "optimizer.lr=5e-3"),
)


@pytest.fixture(scope="module")
def train(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Curve]:
    """`train("seed=1", …)`: the curve of that run."""
    folder = tmp_path_factory.mktemp("learning")
    file = write_tiny(folder / "tiny.yaml", images, *SETTINGS)

    def run(*overrides: str) -> Curve:
        config = load_config(file, [*overrides, f"output={folder / '-'.join(overrides)}"])
        Trainer(config).run()
        lines = read_metrics(Path(config.output) / "metrics.jsonl")
        return curve_of(lines, config.steps, config.log.every, window_of(config.steps, config.log.every))

    return run


@pytest.fixture(scope="module")
def record(train: Callable[..., Curve], make_record: Callable[..., Record]) -> Record:
    """Of seeds 0, 1, 2."""
    return make_record(*(train(f"seed={seed}") for seed in range(3)))


def differing(record: Record, curve: Curve) -> list[str]:
    return [one.quantity for one in agreements(record, points_of(record, curve)) if one.differs]


@pytest.mark.slow
def test_a_further_seed_is_reproduced(record: Record, train: Callable[..., Curve]) -> None:
    assert differing(record, train("seed=3")) == []


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["optimizer.lr=1e-6", "optimizer.lr=5e-4"])
def test_a_broken_run_differs(broken: str, record: Record, train: Callable[..., Curve]) -> None:
    assert differing(record, train("seed=3", broken)) != []
