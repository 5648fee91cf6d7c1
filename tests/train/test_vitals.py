"""Pace, work and memory of a logged line: the count of the estimate, the worst of all ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from franca import devices, peaks
from franca.devices import peak_memory
from franca.metrics import read_metrics
from franca.train import vitals as vitals_module
from franca.train.build import build_pair
from franca.train.clock import Pace
from franca.train.config import TrainConfig
from franca.train.estimate import estimate, work_of_step
from franca.train.trainer import Trainer
from franca.train.vitals import Vitals, VitalSigns

CPU = torch.device("cpu")


def signs_of(config: TrainConfig, precision: torch.dtype | None = None) -> VitalSigns:
    return VitalSigns(config, build_pair(config).student, CPU, precision)


def test_a_run_logs_the_work_that_was_estimated_for_it(train: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = train("steps=2", "accumulate=2", "monitor.every=0", "parallel.activation_checkpointing=full")
    work = estimate(trainer.config).flops
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        steps_per_second = line["images_per_second"] / trainer.config.effective_batch
        assert line["tflops"] == pytest.approx(work.model * steps_per_second / 1e12)
        assert "utilisation" not in line, "no data sheet states what this CPU can do"
    assert work.executed > work.model, "what is computed twice is not counted twice"


def test_numbers_of_a_line_follow_from_steps_and_seconds(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("accumulate=3")
    found = signs_of(config).read(Pace(steps=4, seconds=8.0, waited=2.0), step=4)
    assert found.images_per_second == pytest.approx(4 * 3 * 4 / 8.0)
    assert found.data_wait == 0.25
    assert found.tflops == pytest.approx(estimate(config).flops.model / 2.0 / 1e12)
    assert set(found.line()) == set(Vitals.names()) - {"utilisation"}


def test_utilisation_is_the_share_of_what_the_data_sheet_states(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "name_of", lambda _: "NVIDIA A100-SXM4-40GB")
    found = signs_of(tiny(), torch.bfloat16).read(Pace(1, 1.0, 0.0), step=1)
    assert found.utilisation == pytest.approx(found.tflops / 312)
    assert found.line()["utilisation"] == found.utilisation


def test_the_worst_of_all_ranks_counts_for_waiting_and_memory(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.tensor([0.9, 1e-3], dtype=torch.float64)  # another rank waits for data and uses less memory
    monkeypatch.setattr(vitals_module, "largest_over_ranks", lambda own: torch.maximum(own, other))
    monkeypatch.setattr(vitals_module, "peak_memory", lambda _: 5e9)
    found = signs_of(tiny()).read(Pace(1, 1.0, 0.1), step=1)
    assert (found.data_wait, found.memory_gb) == (0.9, 5.0)


def test_memory_of_the_cpu_is_this_process() -> None:
    before = peak_memory(CPU)
    held = torch.ones(before // 4 + 2**24)  # as large as all there was, and 64 MB more
    after = peak_memory(CPU)
    assert after >= held.nbytes
    del held
    assert peak_memory(CPU) >= after, "the most at any time"


def test_memory_of_an_accelerator_is_what_tensors_held_where_that_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("xpu")
    monkeypatch.setattr(devices.torch.accelerator, "max_memory_allocated", lambda _: 12_345)
    assert peak_memory(device) == 12_345

    def refuse(_: torch.device) -> int:
        raise NotImplementedError("no such count")

    monkeypatch.setattr(devices.torch.accelerator, "max_memory_allocated", refuse)
    assert peak_memory(device) == pytest.approx(peak_memory(CPU), rel=0.01)


@pytest.mark.parametrize(("step", "alone"), [(2, 2), (4, 4), (6, 2), (8, 0), (20, 0)])
def test_work_of_heads_alone_counts_as_such(step: int, alone: int, tiny: Callable[..., TrainConfig]) -> None:
    """Lines of four steps, the first of two, around a thaw after four."""
    config = tiny("init_from=weights.pth", "optimizer.freeze_backbone_steps=4", "steps=20")
    steps = min(step, 4)
    student = build_pair(config).student
    one, other = (work_of_step(config, student, backbone_learns=learns).model for learns in (False, True))
    found = signs_of(config).read(Pace(steps, seconds=steps, waited=0.0), step)
    assert found.tflops == pytest.approx((alone * one + (steps - alone) * other) / steps / 1e12)
    assert one < other
