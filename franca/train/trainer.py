"""The pretraining loop: schedules, steps, and everything that keeps a long run alive."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca.data.batch import PretrainBatch
from franca.data.loader import PretrainLoader
from franca.devices import choose_device, choose_precision, compute_in
from franca.hub.checkpoint import CheckpointError, save_teacher
from franca.metrics import read_metrics
from franca.objective import LossReport, PretrainingObjective, Targets
from franca.train.build import (
    build_pair,
    build_source,
    claim_run_folder,
    describe_teacher,
    flatten,
    sole_owner,
)
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig
from franca.train.files import publish
from franca.train.logger import RunLogger
from franca.train.meter import Meter
from franca.train.monitor import Monitor
from franca.train.optimizer import apply_schedules, build_optimizer, clip_gradients, step_if_finite
from franca.train.recovery import NonFiniteLoss, StepGuard
from franca.train.state import TrainingState
from franca.train.stopping import Interrupted, StopRequest

PARTS = ("backbone", "dino_head", "ibot_head")  # clipped one by one, as the original does
TERMS = ("crop_local", "crop_global", "koleo", "patch")
LEVELLED = ("crop_local", "crop_global", "patch")
SMALLEST_TESTED_BATCH = 32  # the quickstart's
Evaluate = Callable[[nn.Module], dict[str, float]]


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
        self.source = build_source(config)
        pin_memory = self.device.type != "cpu"
        self.loader = PretrainLoader(self.source, config.data, config.seed, config.model.patch_size, pin_memory)
        self.pair = build_pair(config).to(self.device)
        self.objective = PretrainingObjective(self.pair, config.objective)
        self.optimizer = build_optimizer(self.pair.student, len(self.pair.student.backbone.blocks), config.optimizer)
        self.schedules = config.schedules()
        names = self._metric_names()
        self.meter = Meter(names, self.device)
        self.guard = StepGuard(names, self.device)
        self.state = TrainingState(self.pair, self.optimizer, self.meter, self.loader.skipped)
        self.rollbacks = 0
        self.stop = StopRequest()
        self.output = claim_run_folder(config)
        self.checkpoints = CheckpointFolder(self.output / "checkpoints", config.checkpoint)

    def run(self) -> None:
        """Train up to ``steps``, from the newest saved state if there is one.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the state is saved.
            NonFiniteLoss: the loss stayed non-finite after every allowed return to a good state.
            CheckpointError: the first or last state of the run can't be saved, or a saved one doesn't fit.
        """
        config = self.config
        with sole_owner(config, self.output), self.stop:
            newest = self.checkpoints.latest()
            if newest is not None:
                self._restore(newest)
                publish(newest / "teacher.pth", self.output / "teacher.pth")  # a kill may have held it back
            with RunLogger(self.output, config.log, config.steps, self.state.step, flatten(config)) as self.log:
                self.monitor = self._recall_monitor()
                self._announce(newest)
                if newest is None:
                    self._save(required=True)
                self._loop()
                self.log.say(f"done: {config.steps} steps; teacher in {self.output / 'teacher.pth'}")

    def _loop(self) -> None:
        batches = self.loader.batches(self.state.batch)
        self.meter.restart_clock()
        while self.state.step < self.config.steps:
            with self.meter.waiting():
                drawn = [next(batches).to(self.device) for _ in range(self.config.accumulate)]
            targets, report = self.step(drawn)
            self.log.advance(self.state.step)
            # Read once: a signal that comes during what follows stops the run after the next step.
            stopped_by = self.stop.signal_number
            with self.meter.paused():
                trouble = self._after_step(targets, report, stopping=stopped_by is not None)
            if trouble:
                batches = self._roll_back(trouble)
            elif stopped_by is not None and self.state.step < self.config.steps:
                raise Interrupted(stopped_by, self.state.step)

    def step(self, batches: list[PretrainBatch]) -> tuple[Targets, LossReport]:
        """One optimizer step over ``accumulate`` micro-batches on the device; nothing in it waits for the device.

        Returns the targets and losses of the last micro-batch, for the monitor.
        """
        self.state.batch += len(batches)
        values = self.schedules(self.state.step)
        apply_schedules(self.optimizer, values)
        # Stochastic depth is a function of (seed, position in the data), as the crops are: nothing to save or restore.
        torch.manual_seed(self.config.seed * 1_000_003 + self.state.batch)
        with compute_in(self.precision, self.device):
            targets = self.objective.assign(batches, values.teacher_temperature)
        losses = torch.zeros_like(self.meter.sums[: -len(PARTS)])
        for batch, target in zip(batches, targets, strict=True):
            with compute_in(self.precision, self.device):
                report = self.objective.student_loss(batch, target)
            (report.total / len(batches)).backward()
            losses += self._losses(report) / len(batches)
        norms = clip_gradients((getattr(self.pair.student, part) for part in PARTS), self.config.optimizer.clip_grad)
        self.state.step += 1
        quantities = torch.cat([losses, norms])
        finite = self.guard.watch(quantities, self.state.step)
        step_if_finite(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.pair.update_teacher(values.teacher_momentum)
        self.meter.add(quantities, finite)
        return targets[-1], report

    def _after_step(self, targets: Targets, report: LossReport, stopping: bool) -> str:
        """Whatever is due after a step; returns why the run must go back to a good state, or ""."""
        last = self.state.step == self.config.steps
        ending = stopping or last
        saving = ending or self._due(self.config.checkpoint.every)
        if self._due(self.config.log.every) or saving:
            trouble = self._trouble(saving)
            if trouble:
                return trouble
        if self._due(self.config.log.every):
            self._write_line()
        if self._due(self.config.monitor.every):
            self._observe(targets, report)
        if self._due(self.config.evaluation.every) or (last and self.config.evaluation.every > 0):
            self._evaluate()
        if saving:
            self._save(required=ending)
        return ""

    def _trouble(self, saving: bool) -> str:
        """Why the run can't go on, or be saved, from here; "" if it can."""
        skipped_in_a_row, sentence = self.guard.report()
        if sentence:
            self.log.say(f"WARNING: skipped what was not finite: {sentence}")
        if skipped_in_a_row >= self.config.recovery.max_skips:
            return self.guard.last_sentence
        if saving and not self.state.is_finite():
            return "a parameter, a moment of the optimizer or a logged sum is not finite"
        return ""

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

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
        step = self.state.step
        line: dict[str, Any] = {"step": step, "images": step * self.config.effective_batch}
        line |= self.meter.read(self.config.effective_batch)
        line |= asdict(self.schedules(step - 1)) | {"skipped_files": self.loader.skipped.broken}
        self.log.write(line)
        self.log.show(line)

    def _observe(self, targets: Targets, report: LossReport) -> None:
        line = self.monitor.observe(self.state.step, targets, report)
        self.log.write({"step": self.state.step} | line)
        self.log.say(f"step {self.state.step}: {line['verdict']}: {line['verdict_reason']}")

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        scores = self.evaluate(self.pair.teacher.backbone)
        self.log.write({"step": self.state.step} | scores)
        self.log.say(f"step {self.state.step}: " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))

    def _restore(self, path: Path) -> None:
        tensors = self.state.tensors()
        self.checkpoints.load(path, tensors)
        self.state.take_over(tensors)

    def _recall_monitor(self) -> Monitor:
        """A monitor that knows the readings written so far."""
        past = [line["complaint"] for line in read_metrics(self.log.metrics.path) if "complaint" in line]
        return Monitor(self.config.monitor, past, self.config.optimizer.warmup_steps)

    def _save(self, required: bool) -> None:
        """Save; a failure is reported and tried again at the next save, unless this one is ``required``."""
        step = self.state.step
        description = describe_teacher(self.config, self.pair, step, step * self.config.effective_batch)

        def write_teacher(folder: Path) -> None:
            save_teacher(folder / "teacher.pth", self.pair.teacher.state_dict(), description)

        try:
            self.log.metrics.flush()  # a saved state vouches for every line before it
            saved = self.checkpoints.save(step, self.state.tensors(), write_teacher)
            publish(saved / "teacher.pth", self.output / "teacher.pth")
        except (CheckpointError, OSError) as error:
            if required:
                raise
            self.log.say(f"WARNING: {error}. Training goes on; the next save is tried as usual")

    def _roll_back(self, trouble: str) -> Iterator[PretrainBatch]:
        """Return to the newest good state, but go on with images that the failed stretch did not see."""
        path, allowed = self.checkpoints.latest(), self.config.recovery.max_rollbacks
        failed_at, position = self.state.step, self.state.batch
        if path is None or self.rollbacks >= allowed:
            raise NonFiniteLoss(
                f"step {failed_at}: {trouble}; also after {self.rollbacks} of {allowed} returns to a saved state, the "
                f"last good one is {path}. Lower optimizer.lr ({self.config.optimizer.lr}), lengthen "
                "optimizer.warmup_steps or use precision=fp32"
            )
        self._restore(path)
        self.state.batch = position
        self.rollbacks += 1
        self.guard.streak.zero_()
        self.log.go_back(self.state.step)
        self.monitor = self._recall_monitor()
        self.log.say(
            f"step {failed_at}: going back to step {self.state.step} (return {self.rollbacks} of {allowed}), "
            f"on with other images: {trouble}"
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
            self.log.say(f"continuing from step {self.state.step} ({resumed_from})")
        if batch < SMALLEST_TESTED_BATCH:
            self.log.say(
                f"WARNING: effective batch {batch} is below {SMALLEST_TESTED_BATCH}, the smallest that was tested; "
                "raise data.batch_size or accumulate"
            )
        if torch.accelerator.device_count() > 1:
            self.log.say(f"WARNING: {torch.accelerator.device_count()} accelerators are visible, this run uses one")
