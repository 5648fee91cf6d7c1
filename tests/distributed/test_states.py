"""A state saved by N processes is continued by M to the same losses; its teacher file needs no process group."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from franca.distributed import rank, world_size
from franca.hub import describe, load_model
from franca.metrics import read_metrics
from franca.train.parallel import whole_state
from franca.train.stopping import Interrupted
from tests.distributed.ranks import IMAGES, on_ranks
from tests.distributed.small_run import small_trainer

STEPS, STOPPED = 8, 5
OPTIONS = (f"steps={STEPS}", "checkpoint.every=2", "checkpoint.keep_last=9")


def run(output: str, images: str, overrides: tuple[str, ...], stop: bool = False) -> str:
    """Run, or go on with, the small run; ``stop``: the last rank alone gets SIGTERM in step ``STOPPED``."""
    torch.set_default_dtype(torch.float64)
    trainer = small_trainer(output, images, *OPTIONS, *overrides)
    step = trainer.step

    def step_and_signal(batches: Any) -> Any:
        result = step(batches)
        if stop and rank() == world_size() - 1 and trainer.state.step == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    trainer.step = step_and_signal  # type: ignore[method-assign]
    try:
        trainer.run()
    except Interrupted as stopped:
        return str(stopped)
    return "done"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Callable[..., Path]:
    """`trained(ranks, *overrides)`: the run folder of so many processes, stopped half-way; 0: never stopped, by one."""
    done: dict[Any, Path] = {}

    def train(number: int, *overrides: str) -> Path:
        if (number, overrides) not in done:
            folder = tmp_path_factory.mktemp("states")
            said = on_ranks(max(number, 1), folder, run, str(folder / "run"), str(images), overrides, number > 0)
            assert set(said) == {
                f"stopped at step {STOPPED} by SIGTERM; the same command continues" if number else "done"
            }
            done[number, overrides] = folder / "run"
        return done[number, overrides]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved_on", "strategy", "loaded_on", "other"),
    [
        (2, "shard", 1, "replicate"),
        (1, "replicate", 2, "replicate"),
        (2, "shard", 4, "hybrid"),
    ],
)
def test_any_number_of_processes_continues_to_the_same_losses(
    saved_on: int,
    strategy: str,
    loaded_on: int,
    other: str,
    trained: Callable[..., Path],
    images: Path,
    tmp_path: Path,
) -> None:
    whole = trained(0)
    output = shutil.copytree(trained(saved_on, f"parallel.strategy={strategy}"), tmp_path / "run")
    assert (output / "checkpoints" / f"step_{STOPPED:07d}").is_dir()
    on_ranks(
        loaded_on,
        tmp_path / "ranks",
        run,
        str(output),
        str(images),
        (f"parallel.strategy={other}", "parallel.shard_size=2"),
    )
    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (whole, output))
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, other_line in zip(found, expected, strict=True):
        for name in ("loss", "koleo", "patch/0", "gradient_norm/backbone", "lr"):
            assert line[name] == pytest.approx(other_line[name], abs=1e-8), (line["step"], name)
        assert line["images"] == line["step"] * IMAGES
    teachers = [load_model(checkpoint=folder / "teacher.pth").state_dict() for folder in (whole, output)]
    for name, tensor in teachers[0].items():
        assert (teachers[1][name] - tensor).abs().max() <= 1e-8, name
    assert describe(output / "teacher.pth")["images_seen"] == STEPS * IMAGES
    for step in (0, 2, 4, STOPPED, 6, STEPS):
        assert describe(output / "checkpoints" / f"step_{step:07d}" / "teacher.pth")["step"] == step


def state_before_and_after(images: str, folder: str, strategy: str) -> list[str]:
    """Names of the tensors of `whole_state` that training changed afterwards."""
    trainer = small_trainer(folder, images, f"parallel.strategy={strategy}")
    state = whole_state(trainer.pair.teacher)
    before = {name: tensor.clone() for name, tensor in state.items()}
    batches = trainer.loader.batches()
    for _ in range(3):
        trainer.step([next(batches)])
    return [name for name in before if not torch.equal(state[name], before[name])]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replicate", "shard"])
def test_what_is_written_in_the_background_is_a_copy(strategy: str, images: Path, tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path, state_before_and_after, str(images), str(tmp_path / "run"), strategy)
    assert found == [[], []]
