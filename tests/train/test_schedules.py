"""Schedules against the original's (schedules.json), and their properties."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from franca.train.config import TrainConfig
from franca.train.optimizer import OptimizerConfig
from franca.train.schedules import CosineSchedule, TeacherConfig

close = pytest.approx
NAMES = {  # reference -> field of StepValues
    "lr": "lr",
    "wd": "weight_decay",
    "momentum": "teacher_momentum",
    "teacher_temp": "teacher_temperature",
    "last_layer_lr": "last_layer_lr",
}


@pytest.fixture(scope="module")
def reference(parity_dir: Path) -> dict[str, Any]:
    return json.loads((parity_dir / "schedules.json").read_text())


def batch_of(key: str) -> int:
    """'gpus=32,per_gpu=64' or 'schedules_gpus=32_per_gpu=64' -> 2048."""
    gpus, per_gpu = re.findall(r"gpus?=(\d+)", key)
    return int(gpus) * int(per_gpu)


def as_here(merged: dict[str, Any]) -> tuple[OptimizerConfig, TeacherConfig, int]:
    """The original's configuration, which counts epochs, as ours; and the steps of the run."""
    epoch = merged["train"]["OFFICIAL_EPOCH_LENGTH"]
    optim, teacher = merged["optim"], merged["teacher"]
    assert optim["scaling_rule"] == "sqrt_wrt_1024"
    return (
        OptimizerConfig(
            lr=optim["base_lr"],
            lr_scaling="sqrt",
            lr_reference_batch=1024,
            min_lr=optim["min_lr"],
            warmup_steps=optim["warmup_epochs"] * epoch,
            weight_decay=optim["weight_decay"],
            weight_decay_end=optim["weight_decay_end"],
            freeze_last_layer_steps=optim["freeze_last_layer_epochs"] * epoch,
        ),
        TeacherConfig(
            momentum=teacher["momentum_teacher"],
            momentum_end=teacher["final_momentum_teacher"],
            temperature=teacher["teacher_temp"],
            warmup_temperature=teacher["warmup_teacher_temp"],
            temperature_warmup_steps=teacher["warmup_teacher_temp_epochs"] * epoch,
        ),
        optim["epochs"] * epoch,
    )


def test_peak_lr_of_every_config_and_number_of_gpus(reference: dict[str, Any]) -> None:
    checked = 0
    for config in reference["configs"].values():
        optimizer, _, _ = as_here(config["merged_config"])
        for key, expected in config["lr_after_scaling"].items():
            assert optimizer.peak_lr(batch_of(key)) == close(expected, rel=1e-12, abs=0)
            checked += 1
    assert checked >= len(reference["configs"])


def test_all_schedules_of_every_config_that_has_them(reference: dict[str, Any]) -> None:
    found = [
        (key, config) for config in reference["configs"].values() for key in config if key.startswith("schedules_")
    ]
    assert found
    for key, config in found:
        optimizer, teacher, steps = as_here(config["merged_config"])
        assert steps == config[key]["total_iterations"]
        run = TrainConfig(steps=steps, accumulate=1, optimizer=optimizer, teacher=teacher)
        run.data.batch_size = batch_of(key)
        schedules = run.schedules()
        for step, expected in config[key]["values"].items():
            values = schedules(int(step))
            for theirs, ours in NAMES.items():
                assert getattr(values, ours) == close(expected[theirs], rel=1e-12, abs=0), (step, ours)


def test_toy_schedules_in_full(reference: dict[str, Any]) -> None:
    """Its frozen steps, values of 0, come before the schedule: ours has no such steps, and begins after them."""
    for toy in reference["toy"]:
        args = toy["args"]
        frozen = args.get("freeze_iters", 0)
        steps = args["total_iters"] - frozen
        schedule = CosineSchedule(
            base=args["base_value"],
            final=args["final_value"],
            total=steps,
            warmup=args.get("warmup_iters", 0),
            start=args.get("start_warmup_value", 0.0),
        )
        assert toy["values"][:frozen] == [0.0] * frozen
        assert [schedule(step) for step in range(steps)] == close(toy["values"][frozen:], rel=1e-12, abs=0)
        assert schedule(steps) == schedule(steps + 99) == toy["value_at_total"]


def test_heads_alone_have_a_schedule_of_their_own_and_all_others_begin_after_it() -> None:
    """100 steps alone, and the 400 that follow are those of a run of 400."""
    options = {"lr_scaling": "sqrt", "lr_reference_batch": 1024, "warmup_steps": 50, "freeze_last_layer_steps": 20}
    frozen = OptimizerConfig(freeze_backbone_steps=100, freeze_lr=3e-3, **options)  # type: ignore[arg-type]
    teacher = TeacherConfig(temperature_warmup_steps=30)
    run = TrainConfig(steps=500, init_from="weights.pth", optimizer=frozen, teacher=teacher)
    without = TrainConfig(steps=400, optimizer=OptimizerConfig(**options), teacher=teacher)  # type: ignore[arg-type]
    run.data.batch_size = without.data.batch_size = 256
    at, ordinary = run.schedules(), without.schedules()
    assert [at(100 + step) for step in range(401)] == [ordinary(step) for step in range(401)]
    assert at(0).lr == 0
    assert at(5).lr == close(1.5e-3 * 5 / 9)
    assert {at(step).lr for step in range(9, 100)} == {1.5e-3}, "half of freeze_lr at a quarter of the reference batch"
    for step in range(100):
        values, first = at(step), ordinary(0)
        assert values.last_layer_lr == values.lr, "prototypes learn with the heads"
        for name in ("weight_decay", "teacher_momentum", "teacher_temperature"):
            assert getattr(values, name) == getattr(first, name)


@pytest.mark.parametrize(("scaling", "expected"), [("sqrt", 2e-3), ("linear", 4e-3), ("none", 1e-3)])
def test_lr_follows_the_effective_batch(scaling: str, expected: float) -> None:
    config = TrainConfig(accumulate=8, optimizer=OptimizerConfig(lr_scaling=scaling))
    config.data.batch_size = 512
    assert config.effective_batch == 4096
    assert config.schedules()(config.optimizer.warmup_steps).lr == close(expected)


def test_one_warmup_step_starts_at_the_start_value() -> None:
    schedule = CosineSchedule(base=1.0, final=0.0, total=4, warmup=1, start=0.25)
    assert [schedule(step) for step in range(3)] == [0.25, 1.0, 0.75]


def test_temperature_without_warmup_is_constant() -> None:
    schedule = TeacherConfig(temperature=0.05, temperature_warmup_steps=0).temperature_schedule()
    assert {schedule(step) for step in (0, 1, 10_000)} == {0.05}
