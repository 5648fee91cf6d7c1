"""All that changes while a run trains, as one nested dictionary of tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from franca.data.loader import SkipLog
from franca.distributed import is_main, largest_over_ranks, local_part, sum_over_ranks
from franca.objective import StudentTeacher
from franca.train.checkpoint import leaves
from franca.train.meter import Meter


@dataclass
class TrainingState:
    """What a resumed run needs to go on as if it had never stopped. Nothing random: that follows from the seed."""

    pair: StudentTeacher
    optimizer: torch.optim.AdamW
    meter: Meter
    skipped: SkipLog
    step: int = 0  # optimizer steps done
    batch: int = 0  # micro-batches drawn by every rank: the position in the data
    images_per_batch: int = 1  # in one micro-batch of all ranks; the saved position counts images

    def tensors(self) -> dict[str, Any]:
        """The state; parameters, moments and sums are the live tensors, not copies. All ranks must call."""
        loads, broken = sum_over_ranks([self.skipped.loads, self.skipped.broken])
        numbers = {
            "step": self.step,
            "images_drawn": self.batch * self.images_per_batch,
            "files_read": loads,
            "files_broken": broken,
        }
        return {
            "student": self.pair.student.state_dict(),
            "teacher": self.pair.teacher.state_dict(),
            "optimizer": get_optimizer_state_dict(self.pair.student, self.optimizer)["state"],
            "progress": {name: torch.tensor(number) for name, number in numbers.items()},
            "meter": self.meter.state(),
        }

    def take_over(self, tensors: dict[str, Any]) -> None:
        """Go on from ``tensors``: a dictionary from :meth:`tensors` that a saved state was read into."""
        groups = get_optimizer_state_dict(self.pair.student, self.optimizer)["param_groups"]
        set_optimizer_state_dict(
            self.pair.student, self.optimizer, {"state": tensors["optimizer"], "param_groups": groups}
        )
        progress = {name: int(number) for name, number in tensors["progress"].items()}
        self.step, self.batch = progress["step"], progress["images_drawn"] // self.images_per_batch
        counted = progress["files_read"], progress["files_broken"]
        self.skipped.loads, self.skipped.broken = counted if is_main() else (0, 0)  # they are summed over ranks

    def is_finite(self) -> bool:
        """Whether every number in the state is finite, on all ranks; waits for the device."""
        tensors = [local_part(tensor) for tensor in leaves(self.tensors()).values()]
        verdicts = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
        here = bool(torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts]).all())
        return largest_over_ranks(int(not here)) == 0
