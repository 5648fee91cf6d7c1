"""What stops the program until the device has caught up, and what is compiled anew."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function, supported_activities
from torch.utils._python_dispatch import TorchDispatchMode

from measuring.facts import ROOT
from measuring.timing import finish

# Operations whose result, or its shape, the program must know before it goes on.
READS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
)
INDEXING = ("index", "index_put", "index_put_")  # by truth values: nonzero inside
COPIES = ("_to_copy", "copy_")
STEP = "the step that is looked at"


class Waits(TorchDispatchMode):
    """Counts the operations that wait for ``device``, by name and the line of this project that asked for them.

    On the CPU nothing waits: counted is what would wait if the same tensors were on an accelerator, but for copies.
    While a mode like this is on, torch.compile's graphs don't run: Dynamo runs the same code uncompiled, and that is
    what is counted. For a compiled step the synchronising calls of a profile count (``Activity.calls``).
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self._waits(name, func, args, kwargs or {}, result):
            self.found[f"{name} at {_asked_at()}"] += 1
        return result

    def _waits(self, name: str, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
        there = [tensor for tensor in args if isinstance(tensor, Tensor) and tensor.device.type == self.device.type]
        if name in INDEXING:
            masks = [index for index in args[1] if isinstance(index, Tensor)]
            return bool(there) and any(index.dtype in (torch.bool, torch.uint8) for index in masks)
        if name in COPIES and isinstance(result, Tensor):
            source = args[1] if name == "copy_" else args[0]
            blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            return blocking and source.device.type != result.device.type
        if name == "histc":  # finds the bounds itself where both are the same
            given = dict(zip(("self", "bins", "min", "max"), args)) | kwargs  # noqa: B905
            return bool(there) and given.get("min", 0) == given.get("max", 0)
        counted = name == "repeat_interleave" and func is torch.ops.aten.repeat_interleave.Tensor
        return bool(there) and (name in READS or (counted and kwargs.get("output_size") is None))


class Lists(TorchFunctionMode):
    """Counts ``tolist()`` on the CPU into ``found``: there it reads memory, which is no operation."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist and args[0].device.type == "cpu":
            self.found[f"tolist at {_asked_at()}"] += 1
        return func(*args, **(kwargs or {}))


def count_waits(step: Callable[[], object], device: torch.device) -> Counter[str]:
    """Waits of one step, by operation and place."""
    waits = Waits(device)
    with waits:
        if device.type == "cpu":
            with Lists(waits.found):
                step()
        else:
            step()
    return waits.found


def profiled(step: Callable[[], object], device: torch.device) -> tuple[profile, "Activity"]:
    """One step under the profiler, and what the device did meanwhile."""
    activities = [ProfilerActivity.CPU] if device.type == "cpu" else list(supported_activities())
    with profile(activities=activities) as seen:
        with record_function(STEP):
            step()
        finish(device)
    return seen, Activity.of(seen)


class Activity:
    """What a profile of one step shows: synchronising calls of the runtime, kernels, and time without any.

    calls: by name, inside the step. kernels: of the device. idle, span: seconds, from the first kernel to the last.
    """

    def __init__(self, calls: Counter[str], kernels: int, idle: float, span: float) -> None:
        self.calls, self.kernels, self.idle, self.span = calls, kernels, idle, span

    @classmethod
    def of(cls, seen: profile) -> "Activity":
        """Read a profile."""
        events = seen.events() or []
        on_cpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
        step = next(event.time_range for event in on_cpu if event.name == STEP)
        calls = Counter(
            event.name
            for event in on_cpu
            if event.name.endswith("Synchronize") and step.start <= event.time_range.start <= step.end
        )
        work = sorted(
            (event.time_range.start, event.time_range.end)
            for event in events
            if event.device_type != torch.autograd.DeviceType.CPU and not event.is_user_annotation
        )
        idle, busy_until = 0.0, work[0][0] if work else 0.0
        for start, end in work:
            idle += max(0.0, start - busy_until)
            busy_until = max(busy_until, end)
        span = busy_until - work[0][0] if work else 0.0
        return cls(calls, len(work), idle / 1e6, span / 1e6)


def compiled_graphs() -> int:
    """That torch.compile has made in this process so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def _asked_at() -> str:
    """The innermost line of the project on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and file.startswith(f"{ROOT}/") and "site-packages" not in file:
            return f"{Path(file).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the project"
