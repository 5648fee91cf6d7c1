"""The trainer's own step without a run around it: no images, no folder, no log."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

from franca.data.batch import LoadedBatch, PretrainBatch
from franca.data.loader import PretrainLoader
from franca.devices import choose_device, choose_precision
from franca.train.build import build_pair, build_source
from franca.train.config import TrainConfig
from franca.train.estimate import work_of_step
from franca.train.step import TrainingStep
from measuring.parts import Timeline, in_parts
from measuring.synthetic import synthetic_batches
from measuring.timing import Took, timed


class Stepping:
    """Steps of one process of the configured run, from its first step with everything learning.

    from_files: batches of ``data.path`` by the project's loader instead of synthetic ones.
    Raises ConfigError for a configuration that makes no networks, DataError where files are wanted and none are there.
    """

    def __init__(self, config: TrainConfig, from_files: bool = False) -> None:
        self.config = config = replace(config, world_size=1)
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.batches = self._from_files() if from_files else synthetic_batches(config, self.device.type != "cpu")
        self.training = TrainingStep(config, build_pair(config), self.device, self.precision)
        self.work = work_of_step(config, self.training.pair.student)
        self.first = config.optimizer.freeze_backbone_steps
        self.done = 0

    @property
    def images(self) -> int:
        """Of one step."""
        return self.config.effective_batch

    def step(self) -> None:
        """The next step, from drawing its batches on."""
        self.take(self.draw())

    def draw(self, timeline: Timeline | None = None) -> list[PretrainBatch]:
        """Batches on the device, their crops finished there."""
        drawn = []
        for _ in range(self.config.accumulate):
            with timeline.part("waiting for data") if timeline else nullcontext():
                batch = next(self.batches)
            with timeline.part("images") if timeline else nullcontext():
                drawn.append(self.training.receive(batch))
        return drawn

    def take(self, batches: list[PretrainBatch]) -> None:
        """The next step with these batches."""
        self.done += 1
        self.training.take(batches, self.first + self.done - 1, self.done * len(batches))

    def block(self, steps: int) -> Took:
        """So many steps."""

        def work() -> None:
            for _ in range(steps):
                self.step()

        return timed(work, self.device)

    def parts(self) -> dict[str, float]:
        """Seconds of one step by part."""
        timeline = Timeline(self.device)
        with in_parts(self.training, timeline):
            self.take(self.draw(timeline))
        return timeline.seconds()

    def _from_files(self) -> Iterator[LoadedBatch]:
        config = self.config
        pinned = self.device.type != "cpu"
        loader = PretrainLoader(build_source(config), config.data, config.seed, config.model.patch_size, pinned)
        return loader.batches()
