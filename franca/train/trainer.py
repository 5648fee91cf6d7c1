"""The pretraining loop: schedules, steps, and everything that keeps a long run alive."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from franca.data.batch import LoadedBatch, PretrainBatch
from franca.data.loader import PretrainLoader
from franca.devices import choose_device, choose_precision
from franca.distributed import (
    is_main,
    largest_over_ranks,
    local_rank,
    on_main,
    place,
    rank,
    world_size,
)
from franca.files import publish
from franca.hub.checkpoint import CheckpointError, save_teacher
from franca.objective import LossReport, Targets
from franca.train.announcement import opening_lines
from franca.train.build import (
    build_backbone,
    build_pair,
    build_source,
    claim_run_folder,
    describe_teacher,
    sole_owner,
)
from franca.train.checkpoint import CheckpointFolder
from franca.train.clock import Clock
from franca.train.config import TrainConfig
from franca.train.data_advice import DataAdvice
from franca.train.initialise import begin, fill
from franca.train.lines import RunLines
from franca.train.logger import RunLogger, SilentLogger
from franca.train.parallel import whole_state
from franca.train.recovery import NonFiniteLoss
from franca.train.state import TrainingState
from franca.train.step import TrainingStep
from franca.train.stopping import Interrupted, StopRequest
from franca.train.vitals import VitalSigns
from franca.train.watch import Watch

Evaluate = Callable[[nn.Module], dict[str, float]]


class Trainer:
    """A pretraining run from its configuration to its last checkpoint; one of several, when a process group is there.

    Args:
        config: the whole configuration.
        evaluate: called with the teacher's backbone every ``evaluation.every`` steps; returns named scores. Only that
            of rank 0 counts.
        watch: over this process, entered already; None: :meth:`run` enters one of its own.
    """

    def __init__(self, config: TrainConfig, evaluate: Evaluate | None = None, watch: Watch | None = None) -> None:
        self.config = config = config.for_ranks(world_size())
        self.evaluate = evaluate
        self.evaluates = on_main(lambda: evaluate is not None)
        self.device = choose_device(config.device, local_rank() if world_size() > 1 else None)
        self.precision = choose_precision(config.precision, self.device)
        self.source = build_source(config)
        self.loader = PretrainLoader(
            self.source,
            config.data,
            config.seed,
            config.model.patch_size,
            self.device.type != "cpu",
            rank=rank(),
            world_size=world_size(),
        )
        self.pair = build_pair(config)
        self.output = Path(config.output)
        self.checkpoints = CheckpointFolder(self.output / "checkpoints", config.checkpoint)
        # What doesn't fit is said before the folder is claimed.
        self.start = begin(config, self.pair.student, on_main(self.checkpoints.latest))
        self.training = TrainingStep(config, self.pair, self.device, self.precision)
        self.objective, self.optimizer = self.training.objective, self.training.optimizer
        self.meter, self.guard = self.training.meter, self.training.guard
        self.clock = Clock(self.device)
        self.state = TrainingState(self.pair, self.optimizer, self.meter, self.loader)
        self.rollbacks = 0
        self.stop = StopRequest()
        self.own_watch = watch is None
        self.watch = watch or Watch(config, place() if world_size() > 1 else None)
        self.watchdog = self.watch.watchdog
        signs = VitalSigns(config, self.pair.student, self.device, self.precision)
        advice = DataAdvice.for_device(config.data, self.device)
        self.lines = RunLines(config, self.output, self.meter, self.clock, signs, advice)
        on_main(lambda: claim_run_folder(config))

    def run(self) -> None:
        """Train up to ``steps``, from the newest saved state if there is one.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the state is saved.
            NonFiniteLoss: the loss stayed non-finite after every allowed return to a good state.
            CheckpointError: the first or last state of the run can't be saved, or a saved one doesn't fit.
        """
        config = self.config
        with ExitStack() as stack:
            if self.own_watch:
                stack.enter_context(self.watch)
            on_main(lambda: stack.enter_context(sole_owner(config, self.output)))
            self.watch.log.open(self.output)
            stack.enter_context(self.stop)
            stack.callback(self.checkpoints.settle)
            newest = on_main(self.checkpoints.latest)
            if newest is not None:
                self._restore(newest)
                on_main(lambda: self._publish_teacher(newest))  # a kill may have held it back
            else:
                fill(self.pair, self.start)
            self.start = self.start.told()
            on_main(lambda: self.lines.open(stack, self.state.step))
            self.watchdog.say = self.log.say
            self.lines.recall_readings()
            self._announce(newest)
            if newest is None:
                self._save(required=True)
            self._loop()
            self.log.say(f"done: {config.steps} steps; teacher in {self.output / 'teacher.pth'}")

    @property
    def log(self) -> RunLogger | SilentLogger:
        """Where the run speaks; silent on all ranks but the first."""
        return self.lines.log

    def _loop(self) -> None:
        batches = self.loader.batches()
        self.clock.restart()
        self.watchdog.completed(self.state.step)
        while self.state.step < self.config.steps:
            drawn = [self._draw(batches) for _ in range(self.config.accumulate)]
            targets, report = self.step(drawn)
            self.clock.step()
            self.watchdog.completed(self.state.step)
            self.log.advance(self.state.step)
            # Read once: a signal that comes during what follows stops the run after the next step. One stops all ranks.
            stopped_by = int(largest_over_ranks(torch.tensor(self.stop.signal_number or 0))) or None
            trouble = self._after_step(targets, report, stopping=stopped_by is not None)
            del targets, report  # what they hold would lie beside that of the next step
            if trouble:
                with self.watchdog.excused("going back"):
                    batches = self._roll_back(trouble)
                self.watchdog.completed(self.state.step)
            elif stopped_by is not None and self.state.step < self.config.steps:
                raise Interrupted(stopped_by, self.state.step)

    def _draw(self, batches: Iterator[LoadedBatch]) -> PretrainBatch:
        with self.clock.waiting():
            batch = next(batches)
        return self.training.receive(batch)

    def step(self, batches: list[PretrainBatch]) -> tuple[Targets, LossReport]:
        """One optimizer step over ``accumulate`` micro-batches on the device; nothing in it waits for the device.

        Returns the targets and losses of the last micro-batch, for the monitor.
        """
        self.state.batch += len(batches)
        targets, report = self.training.take(batches, self.state.step, self.state.batch)
        self.state.step += 1
        return targets, report

    def _after_step(self, targets: Targets, report: LossReport, stopping: bool) -> str:
        """Whatever is due after a step; returns why the run must go back to a good state, or ""."""
        config, last = self.config, self.state.step == self.config.steps
        ending = stopping or last
        saving = ending or self._due(config.checkpoint.every)
        writing, observing = self._due(config.log.every), self._due(config.monitor.every)
        evaluating = self._due(config.evaluation.every) or (last and config.evaluation.every > 0)
        if not (saving or writing or observing or evaluating):
            return ""
        with self.clock.paused():
            trouble = self._trouble(saving) if writing or saving else ""
            if trouble:
                return trouble
            if writing:
                self.lines.numbers(self.state.step, self.loader.skipped.broken, self.loader.skipped.shards)
            if observing:
                self.lines.reading(self.state.step, targets, report)
            if evaluating and self.evaluates:
                with self.watchdog.excused("evaluating"):
                    self._evaluate()
            if saving:
                with self.watchdog.excused("saving"):
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

    def _evaluate(self) -> None:
        """Rank 0 alone; the others wait for it, and share its error."""
        backbone = self._whole_backbone()

        def score() -> None:
            if self.evaluate is not None:
                self.lines.scores(self.state.step, self.evaluate(backbone))

        with torch.compiler.set_stance("eager_on_recompile"):  # its shapes are not worth a compilation
            on_main(score)

    def _whole_backbone(self) -> nn.Module:
        """The teacher's backbone as rank 0 can use it alone."""
        if self.training.mesh is None:
            return self.pair.teacher.backbone
        state = whole_state(self.pair.teacher.backbone)
        with torch.random.fork_rng(devices=[]):
            backbone = build_backbone(self.config, 0.0)
        if is_main():
            backbone.load_state_dict(state)
        return backbone.to(self.device).eval()

    def _restore(self, path: Path) -> None:
        tensors = self.state.tensors()
        self.checkpoints.load(path, tensors)
        self.state.take_over(tensors)

    def _save(self, required: bool) -> None:
        """Save; a failure is reported and tried again at the next save, unless this one is ``required``.

        A required one is waited for; others end in the background (``checkpoint.asynchronous``).
        """
        step = self.state.step
        images, beginning = step * self.config.effective_batch, self.start.facts
        description = describe_teacher(self.config, self.pair, step, images, beginning)
        self._end_earlier_save()
        teacher = whole_state(self.pair.teacher)

        def write_teacher(folder: Path) -> None:
            save_teacher(folder / "teacher.pth", teacher, description)

        wait = required or not self.config.checkpoint.asynchronous
        save = self.checkpoints.save if wait else self.checkpoints.begin
        try:
            on_main(self.log.flush)  # a saved state vouches for every line before it
            save(step, self.state.tensors(), write_teacher, self._publish_teacher)
        except (CheckpointError, OSError) as error:
            if required:
                raise
            self._say_save_failed(error)

    def _publish_teacher(self, saved: Path) -> None:
        publish(saved / "teacher.pth", self.output / "teacher.pth")

    def _end_earlier_save(self) -> None:
        try:
            self.checkpoints.finish()
        except CheckpointError as error:
            self._say_save_failed(error)

    def _say_save_failed(self, error: Exception) -> None:
        self.log.say(f"WARNING: {error}. Training goes on; the next save is tried as usual")

    def _roll_back(self, trouble: str) -> Iterator[LoadedBatch]:
        """Return to the newest good state, but go on with images that the failed stretch did not see."""
        self._end_earlier_save()
        path, allowed = on_main(self.checkpoints.latest), self.config.recovery.max_rollbacks
        failed_at, position = self.state.step, self.state.position()
        if path is None or self.rollbacks >= allowed:
            raise NonFiniteLoss(
                f"step {failed_at}: {trouble}; also after {self.rollbacks} of {allowed} returns to a saved state, the "
                f"last good one is {path}. Lower optimizer.lr ({self.config.optimizer.lr}), lengthen "
                "optimizer.warmup_steps or use precision=fp32"
            )
        self._restore(path)
        self.state.move_to(position)
        self.rollbacks += 1
        self.guard.streak.zero_()
        on_main(lambda: self.log.go_back(self.state.step))
        self.lines.recall_readings()
        self.log.say(
            f"step {failed_at}: going back to step {self.state.step} (return {self.rollbacks} of {allowed}), "
            f"on with other images: {trouble}"
        )
        self.clock.restart()
        return self.loader.batches()

    def _announce(self, resumed_from: Path | None) -> None:
        lines = opening_lines(self.config, self.pair, self.device, self.precision, self.source)
        for line in lines + self.start.lines:
            self.log.say(line)
        if resumed_from is not None:
            self.log.say(f"continuing from step {self.state.step} ({resumed_from})")
