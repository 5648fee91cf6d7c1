"""All that changes while a run trains, as one nested dictionary of tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from franca.data.loader import PretrainLoader
from franca.distributed import is_main, largest_over_ranks, local_part, sum_over_ranks, world_size
from franca.objective import StudentTeacher
from franca.train.checkpoint import leaves
from franca.train.meter import Meter


@dataclass
class TrainingState:
    """What a resumed run needs to go on as if it had never stopped. Nothing random: that follows from the seed."""

    pair: StudentTeacher
    optimizer: torch.optim.AdamW
    meter: Meter
    loader: PretrainLoader
    step: int = 0  # optimizer steps done
    batch: int = 0  # micro-batches drawn by every rank

    def tensors(self) -> dict[str, Any]:
        """The state; parameters, moments and sums are the live tensors, not copies. All ranks must call."""
        skipped = self.loader.skipped
        loads, broken, shards = sum_over_ranks([skipped.loads, skipped.broken, skipped.shards])
        numbers = {"step": self.step, "files_read": loads, "files_broken": broken, "shards_broken": shards}
        return {
            "student": self.pair.student.state_dict(),
            "teacher": self.pair.teacher.state_dict(),
            "optimizer": get_optimizer_state_dict(self.pair.student, self.optimizer)["state"],
            "data": self.position(),
            "progress": {name: torch.tensor(number) for name, number in numbers.items()},
            "meter": self.meter.state(),
        }

    def position(self) -> dict[str, Tensor]:
        """Where all ranks together stand in the data."""
        return {name: largest_over_ranks(tensor) for name, tensor in self.loader.state_dict().items()}

    def move_to(self, position: dict[str, Tensor]) -> None:
        """Go on in the data from there, on any number of ranks."""
        self.loader.load_state_dict(position)
        self.batch = int(position["images"]) // (self.loader.config.batch_size * world_size())

    def take_over(self, tensors: dict[str, Any]) -> None:
        """Go on from ``tensors``: a dictionary from :meth:`tensors` that a saved state was read into."""
        groups = get_optimizer_state_dict(self.pair.student, self.optimizer)["param_groups"]
        set_optimizer_state_dict(
            self.pair.student, self.optimizer, {"state": tensors["optimizer"], "param_groups": groups}
        )
        progress = {name: int(number) for name, number in tensors["progress"].items()}
        self.step = progress["step"]
        self.move_to(tensors["data"])
        counted = (progress["files_read"], progress["files_broken"], progress["shards_broken"])
        skipped = self.loader.skipped  # summed over ranks when they are used
        skipped.loads, skipped.broken, skipped.shards = counted if is_main() else (0, 0, 0)

    def is_finite(self) -> bool:
        """Whether every number in the state is finite, on all ranks; waits for the device."""
        tensors = [local_part(tensor) for tensor in leaves(self.tensors()).values()]
        verdicts = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
        here = bool(torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts]).all())
        return not largest_over_ranks(torch.tensor(not here, dtype=torch.int32))
