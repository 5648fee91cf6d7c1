"""Where the time of a step goes. Nothing is in the step for it: methods are wrapped while a profile is taken."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.profiler import record_function

from franca.train.step import TrainingStep
from measuring.replaced import replaced

REST = "rest"
BEFORE = ("waiting for data", "images")
INSIDE = ("teacher", "student", "heads", "Sinkhorn", "losses", "backward", "optimizer", "EMA")
PARTS = (*BEFORE, *INSIDE, REST)


class Timeline:
    """Time by part, each without the parts inside it: from every mark to the next.

    Marks lie in the device's own queue, so that nothing waits for them; a device's idle time counts for the part in
    which it was idle. On the CPU seconds are those of the processor, all threads together. One step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []  # moments, or events of the device
        self._open = [REST]
        self._mark(REST)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to it; a trace shows it by that name."""
        self._open.append(name)
        self._mark(name)
        with record_function(name):
            yield
        self._open.pop()
        self._mark(self._open[-1])

    def seconds(self) -> dict[str, float]:
        """By part, in the order of PARTS; waits for the device."""
        self._mark(REST)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        found = dict.fromkeys(PARTS, 0.0)
        for (name, begin), (_, end) in pairwise(self._marks):
            found[name] += self._between(begin, end)
        return found

    def _mark(self, name: str) -> None:
        if self.device.type == "cpu":
            self._marks.append((name, time.process_time()))
        else:
            event = torch.Event(self.device, enable_timing=True)
            event.record()
            self._marks.append((name, event))

    def _between(self, begin: Any, end: Any) -> float:
        return end - begin if self.device.type == "cpu" else begin.elapsed_time(end) / 1e3


@contextmanager
def in_parts(training: TrainingStep, timeline: Timeline) -> Iterator[None]:
    """Let the parts of a step write themselves into the timeline for as long as this is entered."""
    with ExitStack() as stack:
        for owner, method, part in _methods(training):
            inside = _inside(partial(timeline.part, part), getattr(owner, method))
            stack.enter_context(replaced(owner, method, inside))
        yield


def _methods(training: TrainingStep) -> Iterator[tuple[Any, str, str]]:
    pair, objective = training.pair, training.objective
    yield from ((pair.teacher, "forward", "teacher"), (pair.student, "forward", "student"))
    for encoder in (pair.teacher, pair.student):
        for head in (encoder.dino_head, encoder.ibot_head):
            yield from ((head, name, "heads") for name in ("forward", "factors"))
    yield from ((objective, "assign", "Sinkhorn"), (objective, "student_loss", "losses"))
    yield from ((training, "backward", "backward"), (training, "update", "optimizer"), (pair, "update_teacher", "EMA"))


def _inside(around: Callable[[], AbstractContextManager[None]], method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, run inside a context."""

    def run(*arguments: Any, **named: Any) -> Any:
        with around():
            return method(*arguments, **named)

    return run
