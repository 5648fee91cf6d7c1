"""What a run writes of itself while it trains: lines of numbers, the monitor's readings, advice."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from franca.distributed import is_main, sum_over_ranks
from franca.metrics import read_metrics
from franca.objective import LossReport, Targets
from franca.train.build import flatten
from franca.train.clock import Clock
from franca.train.config import TrainConfig
from franca.train.data_advice import DataAdvice
from franca.train.logger import RunLogger, SilentLogger
from franca.train.meter import Meter
from franca.train.monitor import Monitor
from franca.train.vitals import VitalSigns


class RunLines:
    """Puts the lines together and hands them to ``log``, which is silent on all ranks but the first."""

    def __init__(
        self, config: TrainConfig, output: Path, meter: Meter, clock: Clock, signs: VitalSigns, advice: DataAdvice
    ) -> None:
        self.config = config
        self.output = output
        self.meter = meter
        self.clock = clock
        self.signs = signs
        self.advice = advice
        self.schedules = config.schedules()
        self.log: RunLogger | SilentLogger = SilentLogger()

    def open(self, stack: ExitStack, step: int) -> None:
        """From now on write, behind ``step``; for rank 0."""
        config = self.config
        log = RunLogger(self.output, config.log, config.steps, step, flatten(config))
        self.log = stack.enter_context(log)

    def recall_readings(self) -> None:
        """Make the monitor know the readings written so far."""
        past = read_metrics(self.output / "metrics.jsonl") if is_main() else []
        complaints = [line["complaint"] for line in past if "complaint" in line]
        self.monitor = Monitor(self.config.monitor, complaints, self.config.optimizer.warmup_steps)

    def numbers(self, step: int, skipped_files: int, skipped_shards: int) -> None:
        """The line of all that was counted since the last one; skipped: by this rank. All ranks must call."""
        pace = self.clock.read()
        vitals = self.signs.read(pace, step)
        files, shards = sum_over_ranks([skipped_files, skipped_shards])
        line: dict[str, Any] = {"step": step, "images": step * self.config.effective_batch}
        line |= self.meter.read() | vitals.line()
        line |= asdict(self.schedules(step - 1)) | {"skipped_files": files, "skipped_shards": shards}
        self.log.write(line)
        self.log.show(line)
        advice = self.advice.heed(vitals.data_wait, pace.seconds)
        if advice:
            self.log.say(advice)

    def reading(self, step: int, targets: Targets, report: LossReport) -> None:
        """What the monitor makes of rank 0's share of the batch."""
        if is_main():
            line = self.monitor.observe(step, targets, report)
            self.log.write({"step": step} | line)
            self.log.say(f"step {step}: {line['verdict']}: {line['verdict_reason']}")

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """What an evaluation found."""
        self.log.write({"step": step} | scores)
        self.log.say(f"step {step}: " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))
