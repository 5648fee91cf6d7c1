"""All that changes while a run trains, as one nested dictionary of tensors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from franca.data.loader import SkipLog
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
    batch: int = 0  # micro-batches drawn: the position in the data

    def tensors(self) -> dict[str, Any]:
        """The state; parameters, moments and sums are the live tensors, not copies."""
        numbers = {
            "step": self.step,
            "batch": self.batch,
            "files_read": self.skipped.loads,
            "files_broken": self.skipped.broken,
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
        self.step, self.batch = progress["step"], progress["batch"]
        self.skipped.loads, self.skipped.broken = progress["files_read"], progress["files_broken"]

    def is_finite(self) -> bool:
        """Whether every number in the state is finite; waits for the device."""
        verdicts = [torch.isfinite(t).all() for t in leaves(self.tensors()).values() if t.is_floating_point()]
        return bool(torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts]).all())
