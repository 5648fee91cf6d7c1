"""The collectives: one process, and two real ones that talk through gloo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca.distributed import logsumexp_over_ranks, rank, total_over_ranks, world_size
from franca.objective import sinkhorn_assignments
from franca.objective.assignments import Scores
from franca.objective.sinkhorn import balance
from tests.distributed.ranks import on_ranks

HEADS = ("dino", "ibot")
INF = float("inf")
LOCAL = ([-INF, 0.0, -INF, 25000.0, -25000.0], [-INF, 0.0, 3.0, 25001.0, -25000.0])  # one row per rank


def reduce_own_row() -> dict[str, Any]:
    reduced = logsumexp_over_ranks(torch.tensor(LOCAL[rank()]))
    return {"rank": rank(), "world_size": world_size(), "reduced": reduced}


def read_levels(path: Path, prefix: str) -> list[Tensor]:
    with np.load(path) as file:
        return [torch.from_numpy(file[f"two_rank/{prefix}/{level}"]) for level in range(len(file["prototypes"]))]


def solve_own_rows(path: Path, temperature: float, emptied: str) -> dict[str, list[Tensor]]:
    """Sinkhorn of all levels of both heads together; on rank 1 the rows of the `emptied` head are all padding."""
    number = rank()
    heads = {head: read_levels(path, f"{head}/in/rank{number}") for head in HEADS}
    scores = [
        Scores.of_logits(logits, torch.full((len(logits),), not (number == 1 and head == emptied)))
        for head in HEADS
        for logits in heads[head]
    ]
    answers = balance(scores, temperature, 3, logsumexp_over_ranks, total_over_ranks)
    solved = [answer.dense() for answer in answers]
    return {"dino": solved[: len(heads["dino"])], "ibot": solved[len(heads["dino"]) :]}


def test_alone_everything_is_the_identity():
    values = torch.randn(3, 4)
    assert (rank(), world_size()) == (0, 1)
    assert logsumexp_over_ranks(values) is values


@pytest.mark.slow
def test_log_sum_exp_of_two_ranks(tmp_path):
    results = on_ranks(2, tmp_path, reduce_own_row)
    expected = torch.tensor(LOCAL).logsumexp(dim=0)
    for number, result in enumerate(results):
        assert (result["rank"], result["world_size"]) == (number, 2)
        torch.testing.assert_close(result["reduced"], expected)


@pytest.fixture
def temperature(parity_dir: Path) -> float:
    with np.load(parity_dir / "losses.npz") as file:
        return float(file["teacher_temp"])


@pytest.mark.slow
def test_sinkhorn_of_two_ranks_is_the_reference(tmp_path, parity_dir, temperature):
    path = parity_dir / "losses.npz"
    for number, result in enumerate(on_ranks(2, tmp_path, solve_own_rows, path, temperature, "")):
        for head in HEADS:
            for ours, reference in zip(result[head], read_levels(path, f"{head}/out/rank{number}"), strict=True):
                torch.testing.assert_close(ours, reference, atol=2e-6, rtol=0)


@pytest.mark.slow
def test_a_rank_without_masked_patches_leaves_those_of_the_other_alone(tmp_path, parity_dir, temperature):
    path = parity_dir / "losses.npz"
    first, second = on_ranks(2, tmp_path, solve_own_rows, path, temperature, "ibot")
    for ours, nothing, logits in zip(first["ibot"], second["ibot"], read_levels(path, "ibot/in/rank0"), strict=True):
        torch.testing.assert_close(ours, sinkhorn_assignments(logits, temperature), atol=2e-6, rtol=0)
        assert (nothing == 0).all()
    for ours, reference in zip(second["dino"], read_levels(path, "dino/out/rank1"), strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-6, rtol=0)
