"""One process equals several on the same global batch: losses, gradient norms, students, teachers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.distributed import world_size
from franca.objective import koleo_loss
from franca.train.parallel import whole_state
from tests.distributed.ranks import on_ranks
from tests.distributed.small_run import small_trainer

STEPS = 20
OPTIONS = (f"steps={STEPS}", "optimizer.clip_grad=0.05", "checkpoint.every=1000")
Outcome = dict[str, Tensor]


def train(folder: str, images: str, double: bool, overrides: tuple[str, ...], koleo_of: int = 0) -> Outcome:
    """20 steps on this rank's share: every step's logged quantities, and on rank 0 both networks, whole.

    koleo_of: one process computes KoLeo within that many equal parts of its batch and takes their mean.
    """
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    trainer = small_trainer(folder, images, *OPTIONS, *overrides)
    if koleo_of:
        trainer.objective._koleo = lambda features: 0.1 * in_parts(features, koleo_of)  # type: ignore[method-assign]
    logged: list[Tensor] = []
    trainer.meter.add = lambda values, finite: logged.append(values.clone())  # type: ignore[method-assign]
    batches = trainer.loader.batches()
    for _ in range(STEPS):
        trainer.step([next(batches) for _ in range(trainer.config.accumulate)])
    networks = {name: whole_state(getattr(trainer.pair, name)) for name in ("student", "teacher")}
    flat = {f"{network}.{name}": tensor for network, state in networks.items() for name, tensor in state.items()}
    return {"logged": torch.stack(logged)} | flat


def in_parts(features: Tensor, parts: int) -> Tensor:
    """KoLeo of both crops, by hand as the ranks would compute it one by one."""
    losses = [koleo_loss(part) for crop in features.chunk(2) for part in crop.chunk(parts)]
    return torch.stack(losses).sum() / parts


CASES: dict[str, tuple[bool, tuple[str, ...], int]] = {
    "all": (True, ("objective.koleo_over=all",), 0),
    "per rank of 2": (True, ("objective.koleo_over=rank",), 2),
    "accumulated": (True, ("objective.koleo_over=all", "accumulate=2"), 0),
    "single precision": (False, ("objective.koleo_over=all",), 0),
    "half precision": (False, ("objective.koleo_over=all", "precision=bf16"), 0),
}
TOLERANCES = {"single precision": 1e-4, "half precision": 2e-2}  # of losses, relative
STRATEGIES = {
    2: (("parallel.strategy=replicate",), ("parallel.strategy=shard",)),
    4: (("parallel.strategy=shard",), ("parallel.strategy=hybrid", "parallel.shard_size=2")),
}


def train_all(folder: str, images: str, strategies: tuple[tuple[str, ...], ...], names: list[str]) -> list[Outcome]:
    """Every case under every strategy, in one set of processes."""
    outcomes = []
    for strategy in strategies:
        for name in names:
            double, overrides, parts = CASES[name]
            place = f"{folder}/{len(outcomes)}"
            outcomes.append(train(place, images, double, (*overrides, *strategy), parts if world_size() == 1 else 0))
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Callable[..., list[list[Outcome]]]:
    """`outcomes(ranks, cases, strategies)`: by rank, the outcomes of every case under every strategy."""
    done: dict[Any, list[list[Outcome]]] = {}

    def run(
        number: int, names: tuple[str, ...], strategies: tuple[tuple[str, ...], ...] = ((),)
    ) -> list[list[Outcome]]:
        key = (number, names, strategies)
        if key not in done:
            folder = tmp_path_factory.mktemp("ranks")
            done[key] = on_ranks(number, folder, train_all, str(folder / "run"), str(images), strategies, list(names))
        return done[key]

    return run


def require_equal(found: Outcome, expected: Outcome, name: str) -> None:
    if CASES[name][0]:
        torch.testing.assert_close(found["logged"], expected["logged"], rtol=0, atol=1e-8)
        for part, tensor in expected.items():
            assert (found[part] - tensor).abs().max() <= 1e-8, part
    else:
        torch.testing.assert_close(found["logged"][:, 0], expected["logged"][:, 0], rtol=TOLERANCES[name], atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_several_processes_equal_one(number: int, outcomes: Callable[..., list[list[Outcome]]]) -> None:
    names = tuple(CASES) if number == 2 else ("all",)
    single = outcomes(1, tuple(CASES))[0]
    several = outcomes(number, names, STRATEGIES[number])
    expected = [outcome for name, outcome in zip(CASES, single, strict=True) if name in names]
    for place, found in enumerate(several[0]):
        require_equal(found, expected[place % len(names)], names[place % len(names)])
    for others in several[1:]:
        for here, there in zip(several[0], others, strict=True):
            assert torch.equal(here["logged"], there["logged"]), "all ranks log, and decide on, the same numbers"


@pytest.mark.slow
def test_the_comparison_would_notice(outcomes: Callable[..., list[list[Outcome]]]) -> None:
    """Clipping was active, the teacher moved, and KoLeo over all rows is not KoLeo per rank."""
    everything, per_rank, *_ = outcomes(1, tuple(CASES))[0]
    assert (everything["logged"][:, -3:] > 0.05).any()
    assert (everything["logged"][-1] - per_rank["logged"][-1]).abs().max() > 1e-4
    names = [name.removeprefix("student.") for name in everything if name.startswith("student.")]
    assert all(not torch.equal(everything[f"student.{name}"], everything[f"teacher.{name}"]) for name in names)
