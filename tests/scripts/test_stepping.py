"""Steps without a run around them: batches in the loader's form, time by part, waits."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from franca.data.batch import LoadedBatch
from franca.data.loader import PretrainLoader
from franca.train.config import TrainConfig
from measuring.parts import PARTS, Timeline
from measuring.stepping import Stepping
from measuring.synthetic import synthetic_batch
from measuring.waits import STEP, Activity, compiled_graphs, count_waits

CPU = torch.device("cpu")


def tensors_of(batch: LoadedBatch) -> dict[str, Tensor]:
    cut = {field.name: getattr(batch.cut, field.name) for field in dataclasses.fields(batch.cut)}
    found = {**cut, "changes": batch.changes, "norm": batch.norm}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def test_a_synthetic_batch_has_the_form_of_one_from_files(config: TrainConfig, images: Path) -> None:
    data = dataclasses.replace(config.data, path=str(images))
    from_files = next(PretrainLoader(data.build(), data, config.seed, config.model.patch_size).batches())
    wanted, found = tensors_of(from_files), tensors_of(synthetic_batch(config))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        same = (tensor.shape, tensor.dtype, tensor.stride())
        assert (found[name].shape, found[name].dtype, found[name].stride()) == same, name
    assert found["global_crops"].float().std() > 50  # of uniform 8-bit values: 74; zeros run faster


def test_a_profile_has_every_part_and_changes_nothing(config: TrainConfig) -> None:
    plain, profiled = Stepping(config), Stepping(config)
    for _ in range(2):
        plain.step()
        seconds = profiled.parts()
    assert list(seconds) == list(PARTS)
    assert min(seconds[part] for part in PARTS if part != "waiting for data") > 0
    for one, other in zip(plain.training.pair.parameters(), profiled.training.pair.parameters(), strict=True):
        assert torch.equal(one, other)
    for owner in (profiled.training, profiled.training.objective, profiled.training.pair.student.dino_head):
        assert not {"forward", "factors", "assign", "student_loss", "backward", "update"} & vars(owner).keys()


def test_time_belongs_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(time, "process_time", lambda: next(moments))
    timeline = Timeline(CPU)
    with timeline.part("student"), timeline.part("heads"):
        pass
    found = {part: seconds for part, seconds in timeline.seconds().items() if seconds}
    assert found == {"rest": 1.0 + 5.0, "student": 2.0 + 4.0, "heads": 3.0}


def test_nothing_in_a_step_waits(config: TrainConfig) -> None:
    stepping = Stepping(config)
    batches = stepping.draw()
    assert count_waits(lambda: stepping.take(batches), CPU) == Counter()


@pytest.mark.parametrize(
    ("wait", "operation"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.abs().long().bincount(minlength=8), "bincount"),
        (lambda x: x.histc(4), "histc"),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])), "repeat_interleave"),
    ],
)
def test_what_waits_is_counted_with_its_place(wait: Callable[[Tensor], object], operation: str) -> None:
    found = count_waits(lambda: wait(torch.tensor([1.0, -2.0, 3.0])), CPU)
    assert list(found.values()) == [1]
    assert next(iter(found)).startswith(f"{operation} at tests/scripts/test_stepping.py:")


def test_work_with_known_shapes_is_no_wait() -> None:
    rows, places = torch.randn(4, 3), torch.tensor([0, 2])
    assert not count_waits(lambda: rows[places].softmax(0).where(rows[places] > 0, 0.0).sum(), CPU)
    assert not count_waits(lambda: rows.histc(4, -1, 1), CPU)


def test_graphs_are_counted() -> None:
    double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    double(torch.ones(2))
    before = compiled_graphs()
    double(torch.zeros(2))
    assert compiled_graphs() == before
    double(torch.ones(3))
    assert compiled_graphs() == before + 1


def event(name: str, start: float, end: float, kind: str = "CPU", marked: bool = False) -> SimpleNamespace:
    types = {"CPU": torch.autograd.DeviceType.CPU, "device": torch.autograd.DeviceType.PrivateUse1}
    times = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=times, device_type=types[kind], is_user_annotation=marked)


def test_idle_time_is_what_no_kernel_covers() -> None:
    events = [
        event(STEP, 100, 200),
        event("deviceSynchronize", 90, 95),  # before the step
        event("streamSynchronize", 150, 160),
        event(STEP, 110, 400, "device", marked=True),
        event("product", 110, 150, "device"),
        event("copy", 140, 170, "device"),  # on another stream
        event("sum", 200, 230, "device"),
    ]
    seen = Activity.of(SimpleNamespace(events=lambda: events))  # type: ignore[arg-type]
    assert seen.calls == Counter(streamSynchronize=1)
    assert (seen.kernels, seen.idle, seen.span) == (3, pytest.approx(30e-6), pytest.approx(120e-6))
