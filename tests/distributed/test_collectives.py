"""Where a launcher puts a process, and what processes say to each other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from franca.config import ConfigError
from franca.distributed import (
    Place,
    build_mesh,
    first_node,
    gather_rows,
    is_main,
    largest_over_ranks,
    local_part,
    local_rank,
    mean_over_ranks,
    norms_over_shards,
    on_main,
    place,
    rank,
    sum_over_ranks,
    world_size,
)
from tests.distributed.ranks import launched, on_ranks

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[011-012]",
    "SLURM_JOB_ID": "41234",
}


def test_torchrun_names_the_place() -> None:
    assert place(launched(1, 2, 29500)) == Place(1, 2, 1, 2, "127.0.0.1", 29500)


def test_slurm_names_the_place() -> None:
    assert place(SLURM) == Place(5, 8, 1, 4, "gpu011", 21234)
    assert place(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}) == Place(5, 8, 1, 4, "10.0.0.1", 7)


def test_torchrun_inside_slurm_is_torchruns() -> None:
    assert place(SLURM | launched(0, 2, 29500)) == Place(0, 2, 0, 2, "127.0.0.1", 29500)


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}])
def test_nobody_launched_a_process_on_its_own(environment: dict[str, str]) -> None:
    """Nor one that a batch script starts without srun: it would wait for seven others."""
    assert place(environment) is None


def test_half_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT"):
        place({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-005,9],login", "gpu003"), ("a1,a2", "a1"), ("host", "host"), ("c-2-[7,9]", "c-2-7"), ("n[1-2]x", "n1")],
)
def test_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_alone_every_collective_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is mean_over_ranks(rows) is largest_over_ranks(rows) is local_part(rows) is rows
    assert norms_over_shards(rows, None) is rows
    assert (sum_over_ranks([2, 3]), on_main(lambda: 7), is_main(), local_rank()) == ([2, 3], 7, True, 0)


def talk() -> dict[str, Any]:
    """What this rank hears in every collective."""
    own = rank() + 1.0

    def refuse() -> None:
        raise ConfigError("rank 0 alone saw this")

    try:
        on_main(refuse)
        refused = ""
    except ConfigError as error:
        refused = str(error)
    rows = torch.tensor([[own, 10 * own]], requires_grad=True)
    gathered = gather_rows(rows)
    (gathered * gathered).sum().backward()
    return {
        "refused": refused,
        "main": on_main(rank),
        "sum": sum_over_ranks([rank(), 1]),
        "largest": largest_over_ranks(torch.tensor([rank(), -rank()])),
        "mean": mean_over_ranks(torch.tensor([own, torch.nan if rank() else 1.0])),
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "sharded": norms_over_shards(torch.tensor([3.0 if rank() else 4.0]), build_mesh("cpu", 1, world_size())),
        "replicated": norms_over_shards(torch.tensor([3.0]), build_mesh("cpu", world_size(), 1)),
    }


@pytest.mark.slow
def test_two_processes_hear_the_same(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path, talk)
    for heard in (first, second):
        assert heard["refused"] == "rank 0 alone saw this"
        assert (heard["main"], heard["sum"]) == (0, [1, 2])
        assert heard["largest"].tolist() == [1, 0]
        assert heard["mean"][0] == 1.5
        assert heard["mean"][1].isnan(), "not finite on one rank, not finite on all"
        assert heard["gathered"].tolist() == [[1.0, 10.0], [2.0, 20.0]]
        assert heard["sharded"].tolist() == [5.0]
        assert heard["replicated"].tolist() == [3.0]
    # Every rank computes the loss of all rows: twice its gradient, which the mean over two ranks' parameters halves.
    assert first["gradient"].tolist() == [[4.0, 40.0]]
    assert second["gradient"].tolist() == [[8.0, 80.0]]
