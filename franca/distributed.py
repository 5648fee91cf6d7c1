"""Process group and collectives: the same calls with one process and with many."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where the launcher put this process: its number among all and on its machine, and where number 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int


def place(environment: dict[str, str] | None = None) -> Place | None:
    """The place from torchrun's variables, else from those of a SLURM step; None when no launcher set any.

    Raises ValueError when torchrun's variables are there in part only.
    """
    variables = dict(os.environ) if environment is None else environment
    if "RANK" in variables and "WORLD_SIZE" in variables:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in variables]
        if missing:
            raise ValueError(f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}: torchrun sets all of them")
        world_size = int(variables["WORLD_SIZE"])
        return Place(
            rank=int(variables["RANK"]),
            world_size=world_size,
            local_rank=int(variables.get("LOCAL_RANK", variables["RANK"])),
            local_world_size=int(variables.get("LOCAL_WORLD_SIZE", world_size)),
            address=variables["MASTER_ADDR"],
            port=int(variables["MASTER_PORT"]),
        )
    if "SLURM_PROCID" in variables and "SLURM_STEP_NUM_TASKS" in variables:  # only srun sets the second
        nodes = variables.get("SLURM_STEP_NODELIST", "localhost")
        world_size = int(variables["SLURM_STEP_NUM_TASKS"])
        on_this_node = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
        return Place(
            rank=int(variables["SLURM_PROCID"]),
            world_size=world_size,
            local_rank=int(variables.get("SLURM_LOCALID", "0")),
            local_world_size=int(on_this_node[0]) if on_this_node else world_size,
            address=variables.get("MASTER_ADDR", first_node(nodes)),
            port=int(variables.get("MASTER_PORT", 20000 + int(variables.get("SLURM_JOB_ID", "0")) % 20000)),
        )
    return None


def first_node(nodes: str) -> str:
    """First host of SLURM's list form: "gpu[003-005,9],login" -> "gpu003"."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return found[1] + (found[2] or "") if found else nodes


@contextmanager
def process_group(device_type: str, timeout_minutes: float = 30.0) -> Iterator[None]:
    """The default group of all launched processes while entered; nothing for a process on its own.

    The CPU speaks gloo, a device its own backend. A process that waits longer than the timeout ends with an error.
    """
    own = place()
    if own is None or own.world_size == 1:
        yield
        return
    backend = "cpu:gloo"
    if device_type != "cpu":
        backend += f",{device_type}:{dist.get_default_backend_for_device(device_type)}"
    dist.init_process_group(
        backend,
        init_method=f"tcp://{own.address}:{own.port}",
        rank=own.rank,
        world_size=own.world_size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number in the default group; 0 without one."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """How many processes the default group has; 1 without one."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine; 0 without a group."""
    own = place() if _is_initialized() else None
    return own.local_rank if own else 0


def local_world_size() -> int:
    """Processes of the group on this machine; 1 without a group."""
    own = place() if _is_initialized() else None
    return own.local_world_size if own else world_size()


def cpu_group() -> dist.ProcessGroup | None:
    """A new group of all processes that speaks gloo, for a thread of its own; None without a group. All must call."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if _is_initialized() else None


def build_mesh(device_type: str, copies: int, shards: int) -> DeviceMesh:
    """Ranks as copies × shards, neighbours in rank holding the shards of one copy; one axis when there is one copy.

    The last axis is called "shard", the one before it "replicate".
    """
    if copies == 1:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (copies, shards), mesh_dim_names=("replicate", "shard"))


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor, sharing its memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_main(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0; its result, or its error, on every rank. Both are pickled: small things only."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def sum_over_ranks(numbers: list[int]) -> list[int]:
    """Sum of each whole number over the ranks, by way of the CPU."""
    if world_size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return [int(number) for number in total]


def largest_over_ranks(local: Tensor) -> Tensor:
    """The largest of the ranks' values, element by element, of a tensor on the CPU."""
    if world_size() == 1 or not local.numel():
        return local
    largest = local.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over ranks, element by element; not finite on one rank, not finite on all."""
    return values if world_size() == 1 else total_over_ranks(values) / world_size()


@torch.no_grad()
def norms_over_shards(norms: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Norms of whole tensors from those of this rank's shards, (n,) -> (n,); without a mesh they are whole already."""
    if mesh is None:
        return norms
    squares = norms.square()
    dist.all_reduce(squares, op=dist.ReduceOp.SUM, group=mesh.get_group("shard"))
    return squares.sqrt()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, (N, D) -> (world_size * N, D) in rank order, with gradient; every rank has N rows.

    A row's gradient is the sum of what all ranks have for it, so that a loss which every rank computes from all rows
    gives world_size times its gradient: averaged over ranks, as parameters' gradients are, it counts once.
    """
    return rows if world_size() == 1 else cast(Tensor, _Gather.apply(rows))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.chunk(world_size())[rank()]


@torch.no_grad()
def logsumexp_over_ranks(local: Tensor) -> Tensor:
    """log(sum over ranks of exp(local)), element by element, any shape, same on every rank.

    One maximum and one sum over the group, without gradient. -inf stands for "nothing here": a rank that holds -inf
    changes nothing, and -inf on all ranks gives -inf. Without a process group, or alone in it, `local` is returned.
    """
    if world_size() == 1:
        return local
    peak = local.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    peak = peak.masked_fill(peak.isneginf(), 0.0)  # -inf minus -inf would be NaN
    total = (local - peak).exp()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total.log() + peak


@torch.no_grad()
def total_over_ranks(values: Tensor) -> Tensor:
    """Sum over ranks, element by element, without gradient, where the values are."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total
