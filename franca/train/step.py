"""One optimizer step, from batches on the device to the next teacher; nothing in it waits for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from franca.data.batch import LoadedBatch, PretrainBatch
from franca.data.photometric import finish
from franca.devices import compute_in
from franca.distributed import gather_rows, logsumexp_over_ranks, mean_over_ranks, rank, total_over_ranks
from franca.objective import LossReport, PretrainingObjective, StudentTeacher, Targets
from franca.train.build import refused_as
from franca.train.config import TrainConfig
from franca.train.meter import Meter
from franca.train.optimizer import apply_schedules, build_optimizer, clip_gradients, step_if_finite
from franca.train.parallel import parallelize
from franca.train.quantities import PARTS, loss_values, metric_names
from franca.train.recovery import StepGuard


class TrainingStep:
    """Both networks, prepared for the device in place, with all that changes them.

    Args:
        config: of this number of processes (``TrainConfig.for_ranks``).
        pair: both networks, on any device.
        device, precision: where and in what to compute.

    Raises:
        ConfigError: ``parallel`` doesn't fit the number of processes.
    """

    def __init__(
        self, config: TrainConfig, pair: StudentTeacher, device: torch.device, precision: torch.dtype | None
    ) -> None:
        self.config, self.pair, self.device, self.precision = config, pair, device, precision
        with refused_as("parallel"):
            self.mesh = parallelize(pair, config.parallel, device, precision)
        over_ranks = logsumexp_over_ranks, gather_rows, total_over_ranks
        self.objective = PretrainingObjective(pair, config.objective, *over_ranks)
        self.optimizer = build_optimizer(pair.student, len(pair.student.backbone.blocks), config.optimizer)
        self.schedules = config.schedules()
        names = metric_names(len(config.heads.nesting))
        self.meter, self.guard = Meter(names, device), StepGuard(names, device)
        compiled = device.type != "cpu" and config.parallel.compiles(device)
        self._finish = torch.compile(finish, dynamic=False) if compiled else finish

    def receive(self, batch: LoadedBatch) -> PretrainBatch:
        """What the loader gave, finished on the device; copies from pinned memory don't wait."""
        return batch.to(self.device, self._finish)

    def take(self, batches: Sequence[PretrainBatch], step: int, drawn: int) -> tuple[Targets, LossReport]:
        """Step number ``step``, from 0, over ``accumulate`` micro-batches on the device.

        drawn: micro-batches that this process has drawn so far, these included.
        Returns the targets and losses of the last micro-batch, for the monitor.
        """
        values = self.schedules(step)
        apply_schedules(self.optimizer, values)
        self.pair.student.backbone_learns = step >= self.config.optimizer.freeze_backbone_steps
        # Stochastic depth is a function of (seed, position in the data, rank): nothing to save or restore.
        torch.manual_seed(self.config.seed * 1_000_003 + drawn + (rank() << 48))
        with compute_in(self.precision, self.device):
            targets = self.objective.assign(batches, values.teacher_temperature)
        losses = []
        for batch, target in zip(batches, targets, strict=True):
            with compute_in(self.precision, self.device):
                report = self.objective.student_loss(batch, target)
            self.backward(report.total / len(batches))
            losses.append(loss_values(report))
        self.update(torch.stack(losses).mean(dim=0), step + 1)
        self.pair.update_teacher(values.teacher_momentum)
        return targets[-1], report

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch."""
        loss.backward()

    def update(self, losses: Tensor, done: int) -> None:
        """Clip, and move the student where all is finite. losses: of this process; done: steps, this one included."""
        parts = [getattr(self.pair.student, part) for part in PARTS]
        norms = clip_gradients(parts, self.config.optimizer.clip_grad, self.mesh)
        # The same on every rank, and with it whether the step is taken and all that is decided later.
        quantities = torch.cat([mean_over_ranks(losses), norms])
        finite = self.guard.watch(quantities, done)
        step_if_finite(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add(quantities, finite)
