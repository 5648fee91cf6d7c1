"""The pretraining loop: schedules, steps, and everything that keeps a long run alive."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from franca.data.batch import PretrainBatch
from franca.data.loader import PretrainLoader
from franca.hub.checkpoint import CheckpointError, save_teacher
from franca.objective import LossReport, PretrainingObjective, Targets
from franca.train.build import (
    build_pair,
    choose_device,
    choose_precision,
    claim_run_folder,
    compute_in,
    describe_teacher,
    flatten,
    publish_teacher,
)
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig
from franca.train.logger import RunLogger, read_metrics
from franca.train.meter import Meter
from franca.train.monitor import Monitor
from franca.train.optimizer import apply_schedules, build_optimizer, clip_gradients, step_if_finite
from franca.train.recovery import NonFiniteLoss, StepGuard

logger = logging.getLogger(__name__)

PARTS = ("backbone", "dino_head", "ibot_head")  # clipped one by one, as the original does
TERMS = ("crop_local", "crop_global", "koleo", "patch")
LEVELLED = ("crop_local", "crop_global", "patch")
SMALLEST_TESTED_BATCH = 64
Evaluate = Callable[[nn.Module], dict[str, float]]


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the same command continues it."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"stopped at step {step} by {signal.Signals(signal_number).name}; the same command continues")
        self.signal_number = signal_number


class Trainer:
    """A pretraining run from its configuration to its last checkpoint.

    Args:
        config: the whole configuration.
        evaluate: called with the teacher's backbone every ``evaluation.every`` steps; returns named scores.
    """

    def __init__(self, config: TrainConfig, evaluate: Evaluate | None = None) -> None:
        self.config = config
        self.evaluate = evaluate
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.source = config.data.build_source()
        self.loader = PretrainLoader(self.source, config.data, config.seed, config.model.patch_size)
        self.pair = build_pair(config).to(self.device)
        self.objective = PretrainingObjective(self.pair, config.objective)
        self.optimizer = build_optimizer(self.pair.student, len(self.pair.student.backbone.blocks), config.optimizer)
        self.lr = config.optimizer.lr_schedule(config.steps, config.effective_batch)
        self.weight_decay = config.optimizer.weight_decay_schedule(config.steps)
        self.momentum = config.teacher.momentum_schedule(config.steps)
        self.temperature = config.teacher.temperature_schedule()
        names = self._metric_names()
        self.meter = Meter(names, self.device)
        self.guard = StepGuard(names, self.device)
        self.step_number = 0  # optimizer steps done
        self.batch_number = 0  # micro-batches drawn: the position in the data
        self.rollbacks = 0
        self.stop_signal: int | None = None
        self.output = claim_run_folder(config)
        self.checkpoints = CheckpointFolder(self.output / "checkpoints", config.checkpoint)

    def run(self) -> None:
        """Train up to ``steps``, from the newest saved state if there is one.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the state is saved.
            NonFiniteLoss: the loss stayed non-finite after every allowed return to a good state.
            CheckpointError: the last state of the run can't be saved, or a saved one doesn't fit.
        """
        newest = self.checkpoints.latest()
        if newest is not None:
            self._restore(newest)
        with (
            _stop_on_signals(self),
            RunLogger(self.output, self.config.log, self.config.steps, self.step_number, flatten(self.config)) as log,
        ):
            self.log = log
            past = [line["complaint"] for line in read_metrics(log.metrics.path) if "complaint" in line]
            self.monitor = Monitor(self.config.monitor, past)
            self._announce(newest)
            if newest is None:
                self._save()
            self._loop()
            log.say(f"done: {self.config.steps} steps; teacher in {self.output / 'teacher.pth'}")

    def _loop(self) -> None:
        batches = self.loader.batches(self.batch_number)
        while self.step_number < self.config.steps:
            with self.meter.waiting():
                drawn = [next(batches).to(self.device) for _ in range(self.config.accumulate)]
            self.batch_number += len(drawn)
            targets, report = self.step(drawn)
            self.log.advance(self.step_number)
            with self.meter.paused():
                healthy = self._after_step(targets, report)
            if not healthy:
                batches = self._roll_back()
            elif self.stop_signal:
                raise Interrupted(self.stop_signal, self.step_number)

    def step(self, batches: list[PretrainBatch]) -> tuple[Targets, LossReport]:
        """One optimizer step over ``accumulate`` micro-batches on the device; nothing in it waits for the device.

        Returns the targets and losses of the last micro-batch, for the monitor.
        """
        number = self.step_number
        lr = self.lr(number)
        last_layer_lr = 0.0 if number < self.config.optimizer.freeze_last_layer_steps else lr
        apply_schedules(self.optimizer, lr, last_layer_lr, self.weight_decay(number))
        # Stochastic depth is a function of (seed, position in the data), as the crops are: nothing to save or restore.
        torch.manual_seed(self.config.seed * 1_000_003 + self.batch_number)
        with compute_in(self.precision, self.device):
            targets = self.objective.assign(batches, self.temperature(number))
        losses = torch.zeros_like(self.meter.sums[: -len(PARTS)])
        for batch, target in zip(batches, targets, strict=True):
            with compute_in(self.precision, self.device):
                report = self.objective.student_loss(batch, target)
            (report.total / len(batches)).backward()
            losses += self._losses(report) / len(batches)
        norms = clip_gradients((getattr(self.pair.student, part) for part in PARTS), self.config.optimizer.clip_grad)
        values = torch.cat([losses, norms])
        finite = self.guard.watch(values, number)
        step_if_finite(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.pair.update_teacher(self.momentum(number))
        self.meter.add(values, finite)
        self.step_number += 1
        return targets[-1], report

    def _after_step(self, targets: Targets, report: LossReport) -> bool:
        """Whatever is due after a step; False: the run must go back to a good state."""
        ending = self.step_number == self.config.steps or self.stop_signal is not None
        saving = ending or self._due(self.config.checkpoint.every)
        if self._due(self.config.log.every) or saving:
            streak, sentence = self.guard.report()
            if sentence:
                self.log.say(f"skipped a step: {sentence}")
            if streak >= self.config.recovery.max_skips or (saving and not self._state_is_finite()):
                return False
        if self._due(self.config.log.every):
            self._write_line()
        if self._due(self.config.monitor.every):
            self._observe(targets, report)
        if self._due(self.config.evaluation.every) or self.step_number == self.config.steps:
            self._evaluate()
        if saving:
            self._save(required=ending)
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step_number % every == 0

    def _metric_names(self) -> list[str]:
        levels = range(len(self.config.heads.nesting))
        return [
            "loss",
            *TERMS,
            *(f"{term}/{level}" for term in LEVELLED for level in levels),
            *(f"gradient_norm/{part}" for part in PARTS),
        ]

    def _losses(self, report: LossReport) -> Tensor:
        """Total, terms and levels as one vector, in the order of the names."""
        terms = [report.total, *(report.terms[term] for term in TERMS)]
        return torch.cat([torch.stack(terms), *(report.levels[term] for term in LEVELLED)]).detach().float()

    def _write_line(self) -> None:
        number = self.step_number
        line: dict[str, Any] = {"step": number, "images": number * self.config.effective_batch}
        line |= self.meter.read(self.config.effective_batch)
        line |= {
            "lr": self.lr(number - 1),
            "weight_decay": self.weight_decay(number - 1),
            "teacher_momentum": self.momentum(number - 1),
            "teacher_temperature": self.temperature(number - 1),
            "skipped_files": self.loader.skipped.broken,
        }
        self.log.write(line)
        self.log.show(line)

    def _observe(self, targets: Targets, report: LossReport) -> None:
        line = self.monitor.observe(self.step_number, targets, report)
        self.log.write({"step": self.step_number} | line)
        self.log.say(f"step {self.step_number}: {line['verdict']}: {line['verdict_reason']}")

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        scores = self.evaluate(self.pair.teacher.backbone)
        self.log.write({"step": self.step_number} | scores)
        self.log.say(f"step {self.step_number}: " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as a nested dictionary of tensors."""
        return {
            "student": self.pair.student.state_dict(),
            "teacher": self.pair.teacher.state_dict(),
            "optimizer": get_optimizer_state_dict(self.pair.student, self.optimizer)["state"],
            "progress": {"step": torch.tensor(self.step_number), "batch": torch.tensor(self.batch_number)},
            "meter": self.meter.state(),
        }

    def _restore(self, path: Path) -> None:
        state = self.state()
        self.checkpoints.load(path, state)
        groups = get_optimizer_state_dict(self.pair.student, self.optimizer)["param_groups"]
        set_optimizer_state_dict(
            self.pair.student, self.optimizer, {"state": state["optimizer"], "param_groups": groups}
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number = int(state["progress"]["step"])
        self.batch_number = int(state["progress"]["batch"])

    def _state_is_finite(self) -> bool:
        tensors = [t for t in _leaves(self.state()) if t.is_floating_point()]
        return bool(torch.stack([torch.isfinite(t).all().to(self.device) for t in tensors]).all())

    def _save(self, required: bool = False) -> None:
        """Save; a failure is reported and tried again at the next save, unless this one is ``required``."""
        images = self.step_number * self.config.effective_batch
        description = describe_teacher(self.config, self.pair, self.step_number, images)

        def write_teacher(folder: Path) -> None:
            save_teacher(folder / "teacher.pth", self.pair.teacher.state_dict(), description)

        try:
            saved = self.checkpoints.save(self.step_number, self.state(), write_teacher)
            publish_teacher(saved / "teacher.pth", self.output / "teacher.pth")
        except CheckpointError as error:
            if required:
                raise
            self.log.say(f"WARNING: {error}. Training goes on; the next save is tried as usual")

    def _roll_back(self) -> Iterator[PretrainBatch]:
        """Return to the newest good state, but go on with images that the failed stretch did not see."""
        path, allowed = self.checkpoints.latest(), self.config.recovery.max_rollbacks
        if path is None or self.rollbacks >= allowed:
            raise NonFiniteLoss(
                f"the loss stays non-finite ({self.guard.last_sentence}), also after {self.rollbacks} of {allowed} "
                f"returns to a saved state; the last good one is {path}. Lower optimizer.lr "
                f"({self.config.optimizer.lr}), lengthen optimizer.warmup_steps or use precision=fp32"
            )
        position, failed_at = self.batch_number, self.step_number
        self._restore(path)
        self.batch_number = position
        self.rollbacks += 1
        self.guard.streak.zero_()
        self.log.say(
            f"step {failed_at}: going back to step {self.step_number} (return {self.rollbacks} of {allowed}), "
            f"on with other images: {self.guard.last_sentence}"
        )
        return self.loader.batches(position)

    def _announce(self, resumed_from: Path | None) -> None:
        config, batch = self.config, self.config.effective_batch
        precision = "fp32" if self.precision is None else "bf16 autocast"
        parameters = sum(parameter.numel() for parameter in self.pair.student.parameters())
        self.log.say(
            f"{config.model.arch}, {parameters / 1e6:.1f} M parameters with heads, on {self.device} in {precision}; "
            f"{len(self.source)} images; effective batch {batch}, peak lr {config.optimizer.peak_lr(batch):.2e}"
        )
        if resumed_from is not None:
            self.log.say(f"continuing from step {self.step_number} ({resumed_from})")
        if batch < SMALLEST_TESTED_BATCH:
            self.log.say(
                f"WARNING: effective batch {batch} is below {SMALLEST_TESTED_BATCH}, the smallest that was tested; "
                "raise data.batch_size or accumulate"
            )
        if torch.accelerator.device_count() > 1:
            self.log.say(f"WARNING: {torch.accelerator.device_count()} accelerators are visible, this run uses one")


@contextmanager
def _stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT stop the run after the current step; a second one stops it at once."""

    def handle(number: int, _: FrameType | None) -> None:
        if trainer.stop_signal is not None:
            raise KeyboardInterrupt
        trainer.stop_signal = number

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _leaves(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    else:
        for child in node.values():
            yield from _leaves(child)
