"""Student and teacher over many devices: recomputation, compilation and sharding, in this order, stated once.

1. Activation checkpointing wraps what a block computes, so that the compiler sees it.
2. ``torch.compile`` per block: blocks are alike and compile once.
3. ``fully_shard`` (FSDP2) per block, per head, then the rest of each network: its hooks stay outside compiled code.

One process skips the third. Nothing here changes a parameter's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from franca.devices import compiler_trouble
from franca.distributed import build_mesh, is_main, local_world_size, world_size
from franca.objective import Encoder, StudentTeacher

STRATEGIES = ("replicate", "shard", "hybrid")
RECOMPUTATION = ("none", "selective", "full")
# Results that selective checkpointing keeps: products cost most to do again; norms, activations and copies are cheap.
KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


@dataclass
class ParallelConfig:
    """How processes share the work; what one process does alone is the same whatever stands here.

    strategy: replicate (each process holds all of both networks; quickest where that fits), shard (every process holds
    a part of each parameter, gradient and moment), hybrid (shards within groups of shard_size, copies between them).
    shard_size: processes that share one copy under hybrid; 0: those of one machine.
    activation_checkpointing: none, selective (keep products and attention, compute the rest again) or full (keep the
    input of each block alone).
    compile: torch.compile every block, and on an accelerator what finishes its crops; the first steps take minutes.
    None: on an accelerator where that works.
    timeout_minutes: how long a process waits for the others before it ends with an error.
    """

    strategy: str = "replicate"
    shard_size: int = 0
    activation_checkpointing: str = "none"
    compile: bool | None = None
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        for name, choices in (("strategy", STRATEGIES), ("activation_checkpointing", RECOMPUTATION)):
            if getattr(self, name) not in choices:
                raise ValueError(f"parallel.{name}={getattr(self, name)!r} must be one of {', '.join(choices)}")
        if self.shard_size < 0:
            raise ValueError(f"parallel.shard_size={self.shard_size} must not be negative")
        if not self.timeout_minutes > 0:
            raise ValueError(f"parallel.timeout_minutes={self.timeout_minutes} must be above 0")

    def compiles(self, device: torch.device) -> bool:
        """Whether that device runs compiled code."""
        return not compiler_trouble(device) if self.compile is None else self.compile

    def shards(self, ranks: int, per_machine: int) -> int:
        """Processes that share one copy. Raises ValueError when the processes can't be grouped so."""
        shards = {"replicate": 1, "shard": ranks, "hybrid": self.shard_size or per_machine}[self.strategy]
        if ranks % shards:
            raise ValueError(f"parallel.shard_size={shards} does not divide the {ranks} processes")
        return shards


def parallelize(
    pair: StudentTeacher, config: ParallelConfig, device: torch.device, precision: torch.dtype | None
) -> DeviceMesh | None:
    """Prepare both networks in place and move them to the device; returns the mesh of ranks, None for one process.

    precision: what autocast computes in; parameters are gathered in it and gradients summed in fp32.
    Raises ValueError when ``config`` doesn't fit the number of processes.
    """
    compiled = config.compiles(device)
    for network in (pair.student, pair.teacher):
        for block in network.backbone.blocks:
            prepare_block(block, config, learns=network is pair.student, compiled=compiled)
    if world_size() == 1:
        pair.to(device)
        return None
    shards = config.shards(world_size(), local_world_size())
    mesh = build_mesh(device.type, world_size() // shards, shards)
    for network, learns in ((pair.student, True), (pair.teacher, False)):
        _shard(network, mesh, device, precision, learns)
    return mesh


def prepare_block(block: nn.Module, config: ParallelConfig, learns: bool, compiled: bool = False) -> None:
    """Recompute and compile what a block computes, as configured; the teacher stores nothing to recompute.

    Each set of shapes is compiled for itself: there are two, the teacher's and the student's. Left to itself the
    compiler would take the second for the sign that shapes change, and make a slower graph for any.
    """
    compute: Callable[..., Tensor] = block.forward
    if learns and config.activation_checkpointing != "none":
        compute = _recomputed(compute, config.activation_checkpointing)
    if compiled:
        compute = torch.compile(compute, dynamic=False)
    block.forward = compute


def _recomputed(compute: Callable[..., Tensor], how: str) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"context_fn": _keep_products} if how == "selective" else {}

    def forward(*arguments: Any) -> Tensor:
        return checkpoint(compute, *arguments, use_reentrant=False, **options)

    return forward


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(
        lambda _context, operation, *_, **__: (
            CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
        )
    )


def _shard(
    network: Encoder, mesh: DeviceMesh, device: torch.device, precision: torch.dtype | None, learns: bool
) -> None:
    """Blocks and heads travel in ``precision``; what is left (positions, last norm) is small and stays precise.

    Autocast keeps the stream between blocks in fp32, so inputs are not cast. The CPU's layer norm takes no weights of
    another type than its input, so there everything travels in fp32. The teacher is put back into shards after every
    use: the moving average changes the shards, which a gathered copy would not notice.
    """
    travels = None if device.type == "cpu" else precision
    reduced = torch.float32 if precision is not None else None
    policy = MixedPrecisionPolicy(param_dtype=travels, reduce_dtype=reduced, cast_forward_inputs=False)
    precise = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    whole_shards = mesh.size(mesh.ndim - 1) == 1
    for unit in (*network.backbone.blocks, network.dino_head, network.ibot_head):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=not (learns and whole_shards))
    for head in (network.dino_head, network.ibot_head):
        register_fsdp_forward_method(head, "factors")  # gathers the parameters, as forward does
    fully_shard(network, mesh=mesh, mp_policy=precise, reshard_after_forward=not learns)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the module's tensors on the CPU, unsharded: on rank 0; empty on the others. All ranks must call."""
    if world_size() == 1:
        return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(module, options=options))
    live = any(parameter.device.type == "cpu" for parameter in module.parameters())  # whole shards there: no copies yet
    return {name: tensor.clone() for name, tensor in state.items()} if live else state


def fill_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors, those of rank 0, into the module, sharded or not; undoes :func:`whole_state`.

    state: every tensor of the module; what other ranks give is ignored. All ranks must call.
    """
    if world_size() == 1:
        module.load_state_dict(state)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, dict(state) if is_main() else {}, options=options)
