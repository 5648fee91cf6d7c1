"""What a logged line says of a run besides what it learns: pace, waiting, work and memory."""

from dataclasses import asdict, dataclass, fields

import torch

from franca.devices import peak_memory
from franca.distributed import largest_over_ranks
from franca.objective import Encoder
from franca.peaks import utilisation
from franca.train.clock import Pace
from franca.train.config import TrainConfig
from franca.train.estimate import work_of_step


@dataclass(frozen=True)
class Vitals:
    """The numbers of a line, by the names that it gives them. They depend on clock and machine, and nothing on them."""

    images_per_second: float  # of all processes together
    data_wait: float  # share of the time that a device stood idle for want of data; the worst of all processes
    tflops: float  # 10^12 operations a second of one device, as the network needs them: recomputation doesn't count
    utilisation: float | None  # those as a share of what the device's data sheet states; None where none is known
    memory_gb: float  # most that tensors held on a device so far, the resident set on a CPU; the worst of all processes

    @staticmethod
    def names() -> list[str]:
        """Of all numbers, known or not."""
        return [field.name for field in fields(Vitals)]

    def line(self) -> dict[str, float]:
        """What is written: all that is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class VitalSigns:
    """Makes :class:`Vitals` of what the clock counted.

    student: counted before or after it is sharded. precision: what products compute in, None for fp32.
    """

    def __init__(
        self, config: TrainConfig, student: Encoder, device: torch.device, precision: torch.dtype | None
    ) -> None:
        self.images = config.effective_batch
        self.frozen_steps = config.optimizer.freeze_backbone_steps
        self.flops = work_of_step(config, student).model
        self.flops_alone = work_of_step(config, student, backbone_learns=False).model
        self.device = device
        self.precision = precision

    def read(self, pace: Pace, step: int) -> Vitals:
        """The vitals of all processes over the steps of ``pace``, ``step`` the last of them. All ranks must call."""
        steps = max(pace.steps, 1)
        alone = min(max(self.frozen_steps - (step - steps), 0), steps)
        flops = (alone * self.flops_alone + (steps - alone) * self.flops) / steps
        own = torch.tensor([pace.data_wait, peak_memory(self.device) / 1e9], dtype=torch.float64)
        data_wait, memory = largest_over_ranks(own).tolist()
        return Vitals(
            images_per_second=self.images / pace.step_seconds,
            data_wait=data_wait,
            tflops=flops / pace.step_seconds / 1e12,
            utilisation=utilisation(flops, pace.step_seconds, self.device, self.precision),
            memory_gb=memory,
        )
