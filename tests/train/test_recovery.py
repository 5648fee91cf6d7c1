"""Arithmetic that is not finite: named, skipped, and in the end undone; never saved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.hub import load_model
from franca.train.checkpoint import leaves
from franca.train.config import TrainConfig
from franca.train.recovery import NonFiniteLoss, StepGuard
from franca.train.trainer import Trainer

Bad = Callable[[Trainer], bool]


def spoil_patch_loss(trainer: Trainer, bad: Bad) -> None:
    """The patch term of the middle level becomes NaN in every step for which ``bad`` says so."""
    student_loss = trainer.objective.student_loss

    def spoiled(*arguments: Any) -> Any:
        report = student_loss(*arguments)
        if not bad(trainer):
            return report
        level = torch.tensor([0.0, torch.nan, 0.0])
        return replace(
            report,
            total=report.total + level.sum(),
            terms=report.terms | {"patch": level.sum()},
            levels=report.levels | {"patch": report.levels["patch"] + level},
        )

    trainer.objective.student_loss = spoiled  # type: ignore[method-assign]


def after_step(trainer: Trainer, number: int, do: Callable[[], None]) -> None:
    """Do something once, when step ``number`` has been taken."""
    step, done = trainer.step, []

    def step_and_do(batches: Any) -> Any:
        result = step(batches)
        if trainer.state.step == number and not done:
            done.append(True)
            do()
        return result

    trainer.step = step_and_do  # type: ignore[method-assign]


def all_saved_is_finite(trainer: Trainer) -> bool:
    folders = sorted((trainer.output / "checkpoints").glob("step_*"))
    assert folders
    for folder in folders:
        tensors = trainer.state.tensors()
        trainer.checkpoints.load(folder, tensors)
        models = [load_model(checkpoint=place / "teacher.pth") for place in (folder, trainer.output)]
        values = [*leaves(tensors).values(), *(p for model in models for p in model.parameters())]
        if not all(bool(torch.isfinite(value).all()) for value in values):
            return False
    return True


def test_one_bad_step_is_named_and_skipped_without_a_trace(
    tiny: Callable[..., TrainConfig],
    tensors_of: Callable[[Trainer], dict[str, Tensor]],
    lines_of: Callable[[Path], list[dict[str, Any]]],
    differing: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = Trainer(tiny("steps=5", "log.every=5", "checkpoint.every=9", "monitor.every=0"))
    spoil_patch_loss(trainer, lambda t: t.state.step == 2)
    seen: dict[int, dict[str, Tensor]] = {}
    for number in (2, 3, 4):
        after_step(trainer, number, lambda number=number: seen.update({number: tensors_of(trainer)}))
    losses: list[float] = []
    add = trainer.meter.add
    trainer.meter.add = lambda values, finite: (losses.append(float(values[0])), add(values, finite))[1]  # type: ignore
    trainer.run()

    kept = ("student", "optimizer", "meter")
    assert {name.split(".")[0] for name in differing(seen[2], seen[3])} <= {"teacher", "progress", "data"}
    assert set(kept) <= {name.split(".")[0] for name in differing(seen[3], seen[4])}
    said = capsys.readouterr().out
    assert "WARNING: skipped what was not finite" in said
    sentence = next(line for line in said.splitlines() if "not finite" in line)
    assert "patch/1" in sentence
    assert "not finite in 1 step, first at step 3" in sentence
    assert "crop_local" not in sentence
    assert "patch/0" not in sentence
    finite = [loss for loss in losses if loss == loss]
    assert len(finite) == 4
    (line,) = lines_of(trainer.output)
    assert line["loss"] == pytest.approx(sum(finite) / 4, rel=1e-6)


def test_a_run_of_bad_steps_goes_back_and_on_with_other_images(
    tiny: Callable[..., TrainConfig],
    lines_of: Callable[[Path], list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = Trainer(tiny("steps=9", "checkpoint.every=4", "recovery.max_skips=3", "monitor.every=1"))
    spoil_patch_loss(trainer, lambda t: 6 <= t.state.batch <= 8)
    drawn: list[int] = []
    step = trainer.step
    trainer.step = lambda batches: (drawn.extend(b.sample_numbers[0] // 4 for b in batches), step(batches))[1]  # type: ignore
    trainer.run()
    said = capsys.readouterr().out
    assert "step 8: going back to step 4 (return 1 of 3), on with other images: loss, patch, patch/1" in said
    assert drawn == list(range(13)), "no image of the failed stretch is seen again, none is left out"
    assert (trainer.state.step, trainer.state.batch, trainer.rollbacks) == (9, 13, 1)
    losses = [line["step"] for line in lines_of(trainer.output) if "lr" in line]
    readings = [line["step"] for line in lines_of(trainer.output) if "verdict" in line]
    assert losses == readings == list(range(1, 10))
    assert all_saved_is_finite(trainer)


def test_a_run_that_stays_bad_ends_with_advice(
    tiny: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny("steps=9", "recovery.max_skips=2", "recovery.max_rollbacks=2", "checkpoint.every=3"))
    spoil_patch_loss(trainer, lambda t: t.state.batch > 4)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.run()
    message = str(caught.value)
    assert "loss, patch, patch/1 not finite in" in message
    assert "after 2 of 2 returns" in message
    assert "step_0000003" in message
    for advice in ("optimizer.lr (0.001)", "optimizer.warmup_steps", "precision=fp32"):
        assert advice in message
    assert capsys.readouterr().out.count("going back to step 3") == 2
    assert all_saved_is_finite(trainer)


def poison_student(trainer: Trainer) -> None:
    trainer.pair.student.backbone.cls_token.data[0, 0, 0] = torch.nan


def poison_teacher(trainer: Trainer) -> None:
    trainer.pair.teacher.ibot_head.mlps[0][0].bias.data[0] = torch.inf


def poison_moment(trainer: Trainer) -> None:
    trainer.optimizer.state[trainer.pair.student.backbone.norm.weight]["exp_avg_sq"][0] = torch.inf


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("poison", [poison_student, poison_teacher, poison_moment])
def test_a_state_that_is_not_finite_is_never_saved(
    poison: Callable[[Trainer], None],
    number: int,
    tiny: Callable[..., TrainConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Spoilt just before the save at step 4, or a step before it: either way the run goes back to step 2."""
    trainer = Trainer(tiny("steps=6", "checkpoint.every=2", "checkpoint.keep_last=9"))
    after_step(trainer, number, lambda: poison(trainer))
    trainer.run()
    assert "step 4: going back to step 2 (return 1 of 3)" in capsys.readouterr().out
    assert trainer.rollbacks == 1
    assert all_saved_is_finite(trainer)
    assert sorted(path.name[-1] for path in (trainer.output / "checkpoints").iterdir()) == ["0", "2", "4", "6"]


def test_a_bad_state_at_the_end_is_not_saved_either(
    tiny: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tiny("steps=3", "checkpoint.every=2"))
    after_step(trainer, 3, lambda: poison_moment(trainer))
    trainer.run()
    assert "step 3: going back to step 2" in capsys.readouterr().out
    assert all_saved_is_finite(trainer)
    assert trainer.state.step == 3


def test_the_guard_counts_on_the_device_and_forgets_what_it_told() -> None:
    guard = StepGuard(["loss", "crop", "patch"], torch.device("cpu"))
    fine, patch_bad, all_bad = torch.tensor([[1.0, 2, 3], [torch.nan, 2, torch.inf], [torch.nan] * 3])
    assert bool(guard.watch(fine, 1))
    assert guard.report() == (0, "")
    for step, values in enumerate((patch_bad, all_bad, patch_bad), start=2):
        assert not guard.watch(values, step)
    assert guard.report() == (
        3,
        "loss, patch not finite in 3 steps, first at step 2; crop not finite in 1 step, first at step 3",
    )
    assert guard.report() == (3, "")
    assert guard.last_sentence.startswith("loss, patch")
    guard.watch(fine, 5)
    assert guard.report() == (0, "")
