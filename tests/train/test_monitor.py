"""What the monitor's numbers mean, when it says what, and that collapses in training are named."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from franca.objective import LossReport, Targets
from franca.objective.eager import WrittenAssignments
from franca.train.config import TrainConfig
from franca.train.monitor import (
    Health,
    Monitor,
    MonitorConfig,
    Reading,
    assignment_information,
    complaint,
    effective_rank,
    feature_similarity,
    take_reading,
)
from franca.train.trainer import Trainer

close = pytest.approx
FINE = Reading([0.2, 0.3], [0.5, 0.5], [8, 16], 12.0, 0.1, 0.4)
SAME_FEATURE = replace(FINE, feature_similarity=0.9999)
ONE_DIRECTION = replace(FINE, effective_rank=1.2)
NO_INFORMATION = replace(FINE, assignment_information=[0.001, 0.004])
NOT_FINITE = replace(FINE, feature_similarity=math.nan, effective_rank=math.nan)


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0))).Q


@pytest.mark.parametrize(("rows", "prototypes"), [(8, 8), (4, 16), (16, 4)])
def test_assignments_that_name_the_row_carry_all_information(rows: int, prototypes: int) -> None:
    one_hot = torch.eye(prototypes)[torch.arange(rows) % prototypes]
    assert assignment_information(one_hot) == close(1.0, abs=1e-5)
    assert assignment_information(one_hot[torch.randperm(rows)]) == close(1.0, abs=1e-5)


@pytest.mark.parametrize("row", [torch.ones(6) / 6, torch.eye(6)[2], torch.tensor([0.5, 0.5, 0, 0, 0, 0])])
def test_assignments_that_are_all_the_same_carry_none(row: Tensor) -> None:
    assert assignment_information(row.expand(12, 6)) == close(0.0, abs=1e-5)


def test_two_crops_with_the_same_assignment_count_as_one() -> None:
    assert assignment_information(torch.eye(8)[:4].repeat(2, 1)) == close(math.log(4) / math.log(8), abs=1e-5)


@pytest.mark.parametrize("directions", [1, 2, 5, 8])
def test_effective_rank_of_equal_orthogonal_directions_is_their_number(directions: int) -> None:
    rows = torch.eye(8)[:directions]
    features = torch.cat([rows, -rows])
    assert effective_rank(features) == close(directions, rel=1e-5)
    moved = 3 * features @ orthogonal(8) + torch.randn(8)
    assert effective_rank(moved) == close(directions, rel=1e-3), "turning, scaling and shifting change nothing"


def test_effective_rank_by_hand_and_of_nothing() -> None:
    features = torch.diag(torch.tensor([3.0, 1.0, 0.0]))[[0, 0, 1, 1]] * torch.tensor([[1.0], [-1], [1], [-1]])
    shares = [0.75, 0.25]
    assert effective_rank(features) == close(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)
    assert effective_rank(torch.zeros(4, 3)) == 1.0
    assert effective_rank(torch.randn(3).expand(6, 3)) == 1.0
    assert math.isnan(effective_rank(torch.full((4, 3), torch.nan)))


def test_feature_similarity_is_the_mean_over_pairs() -> None:
    features = torch.randn(7, 5)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    by_hand = sum(float(F.cosine_similarity(features[i], features[j], dim=0)) for i, j in pairs) / len(pairs)
    assert feature_similarity(features) == close(by_hand, abs=1e-5)
    assert feature_similarity(features[:1].expand(6, 5) * torch.rand(6, 1)) == close(1.0, abs=1e-5)
    assert feature_similarity(torch.eye(4)) == close(0.0, abs=1e-6)
    assert feature_similarity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == close(-1.0, abs=1e-6)


def answers(teacher: Tensor, student: Tensor) -> tuple[Targets, LossReport]:
    """Targets and report whose widest level holds these first choices, (2B,) each."""
    assignments = [WrittenAssignments(q) for q in (torch.full((len(teacher), 2), 0.5), F.one_hot(teacher, 8).float())]
    tokens = torch.randn(len(teacher), 5)
    return Targets(assignments, [], tokens), LossReport(torch.zeros(()), {}, {}, tokens, student)


def test_agreement_compares_the_teacher_with_the_students_other_crop() -> None:
    teacher = torch.tensor([0, 1, 2, 3, 4, 5])
    assert take_reading(*answers(teacher, torch.tensor([3, 4, 5, 0, 1, 2]))).agreement == 1.0
    assert take_reading(*answers(teacher, teacher)).agreement == 0.0
    assert take_reading(*answers(teacher, torch.tensor([3, 4, 0, 0, 0, 0]))).agreement == close(0.5)


def test_a_reading_of_each_level_and_its_names() -> None:
    reading = take_reading(*answers(torch.tensor([0, 0, 2, 3]), torch.zeros(4, dtype=torch.int64)))
    assert reading.prototypes_used == [1, 3]
    assert reading.assignment_entropy == close([1.0, 0.0], abs=1e-6)
    assert reading.assignment_information[0] == close(0.0, abs=1e-6)
    assert reading.metrics().keys() == {
        *(
            f"{name}/{i}"
            for name in ("assignment_information", "assignment_entropy", "prototypes_used")
            for i in (0, 1)
        ),
        *("effective_rank", "feature_similarity", "agreement"),
    }


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (FINE, ""),
        (SAME_FEATURE, "same feature"),
        (ONE_DIRECTION, "one direction"),
        (NO_INFORMATION, "say nothing about the images"),
        (NOT_FINITE, "not finite"),
        (replace(FINE, assignment_information=[0.0, 0.05]), ""),
    ],
)
def test_complaints(reading: Reading, words: str) -> None:
    assert words in complaint(reading)
    assert bool(complaint(reading)) == bool(words)


def verdicts(
    readings: list[Reading], config: MonitorConfig, warmup: int = 0, past: list[str] | None = None
) -> list[str]:
    """Verdicts at steps every, 2 * every, …"""
    monitor = Monitor(config, past or [], warmup)
    found = []
    for number, reading in enumerate(readings, start=1):
        monitor.complaints.append(complaint(reading))
        found.append(monitor.judge(number * config.every, reading).health.value)
    return found


EARLY, HEALTHY, COLLAPSING = (health.value for health in (Health.EARLY, Health.HEALTHY, Health.COLLAPSING))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([FINE] * 4, [EARLY, EARLY, HEALTHY, HEALTHY]),
        ([SAME_FEATURE] * 4, [EARLY, EARLY, COLLAPSING, COLLAPSING]),
        ([FINE, SAME_FEATURE, FINE, ONE_DIRECTION], [EARLY, EARLY, HEALTHY, EARLY]),
        ([FINE, NO_INFORMATION, NO_INFORMATION, FINE], [EARLY, EARLY, COLLAPSING, HEALTHY]),
        ([FINE, FINE, SAME_FEATURE, NOT_FINITE], [EARLY, EARLY, EARLY, COLLAPSING]),
    ],
)
def test_a_collapse_needs_patience_and_a_verdict_needs_time(readings: list[Reading], expected: list[str]) -> None:
    assert verdicts(readings, MonitorConfig(every=100, patience=2, first_verdict=250)) == expected


def test_a_bad_start_is_no_collapse_before_the_warmup_ends_but_a_fall_is() -> None:
    config = MonitorConfig(every=100, patience=2, first_verdict=200)
    assert verdicts([SAME_FEATURE] * 6, config, warmup=500) == [EARLY] * 4 + [COLLAPSING] * 2
    assert verdicts([FINE] + [SAME_FEATURE] * 3, config, warmup=500) == [EARLY, EARLY, COLLAPSING, COLLAPSING]


def test_readings_before_a_resume_count() -> None:
    config = MonitorConfig(every=100, patience=3, first_verdict=0)
    assert verdicts([SAME_FEATURE], config, past=["", "bad", "bad"]) == [COLLAPSING]
    assert verdicts([FINE], config, past=["", "bad", "bad"]) == [HEALTHY]


def test_every_verdict_says_why() -> None:
    monitor = Monitor(MonitorConfig(patience=1, first_verdict=200), [complaint(ONE_DIRECTION)], warmup=0)
    assert monitor.judge(100, ONE_DIRECTION).reason == (
        "the teacher's features vary along one direction at most (effective rank 1.20); "
        "a verdict needs 200 steps and 1 readings; this is step 100"
    )
    assert "1 readings in a row" in monitor.judge(300, ONE_DIRECTION).reason
    monitor.complaints.append("")
    silent = replace(FINE, assignment_information=[0.001, 0.3])
    reason = monitor.judge(300, silent).reason
    assert "30% of the possible information at the best level, next to nothing yet at level 0" in reason
    assert "effective rank 12.0" in reason


WATCHED = ("steps=12", "checkpoint.every=99", "monitor.every=2", "monitor.patience=2", "monitor.first_verdict=8")


def constant_features(trainer: Trainer) -> None:
    """The last norm ignores its input."""
    with torch.no_grad():
        for encoder in (trainer.pair.student, trainer.pair.teacher):
            encoder.backbone.norm.weight.zero_()
            encoder.backbone.norm.bias.copy_(torch.linspace(-1, 1, encoder.backbone.embed_dim))


def one_direction(trainer: Trainer) -> None:
    """The last norm lets one feature through, less its mean."""
    crops = next(trainer.loader.batches()).to("cpu").global_crops
    with torch.no_grad():
        mean = trainer.pair.teacher.backbone(crops)[:, 0].mean()
        for encoder in (trainer.pair.student, trainer.pair.teacher):
            encoder.backbone.norm.weight[1:] = 0.0
            encoder.backbone.norm.bias[0] -= mean


def silent_heads(trainer: Trainer) -> None:
    """The last linear map of the class-token heads hands on its bias alone."""
    with torch.no_grad():
        for encoder in (trainer.pair.student, trainer.pair.teacher):
            for mlp in encoder.dino_head.mlps:
                mlp[-1].weight.zero_()
                mlp[-1].bias.fill_(1.0)


@pytest.mark.parametrize(
    ("force", "words"),
    [(constant_features, "same feature"), (one_direction, "one direction"), (silent_heads, "say nothing")],
)
def test_a_forced_collapse_is_named_in_the_log_and_on_the_console(
    force: Callable[[Trainer], None],
    words: str,
    tiny: Callable[..., TrainConfig],
    lines_of: Callable[[Path], list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = Trainer(tiny(*WATCHED, "optimizer.lr=1e-9", "optimizer.min_lr=0"))
    force(trainer)
    trainer.run()
    found = [line for line in lines_of(trainer.output) if "verdict" in line]
    assert [line["verdict"] for line in found] == [EARLY] * 3 + [COLLAPSING] * 3
    assert all(words in line["verdict_reason"] and words in line["complaint"] for line in found)
    said = [line for line in capsys.readouterr().out.splitlines() if "collapsing" in line]
    assert len(said) == 3
    assert all(words in line for line in said)


def test_a_collapse_that_training_itself_makes_is_named(
    train: Callable[..., Trainer], lines_of: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Heads far too narrow for this lr: after a few steps their biases drown the image."""
    train(*WATCHED, "steps=24", "heads.hidden_dim=8", "optimizer.lr=3e-3")
    found = [line for line in lines_of(tmp_path / "run") if "verdict" in line]
    assert found[0]["complaint"] == ""
    assert found[-1]["verdict"] == COLLAPSING
    assert "say nothing" in found[-1]["verdict_reason"]


def test_a_short_run_that_learns_is_healthy(
    train: Callable[..., Trainer], lines_of: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    train(
        *(*WATCHED, "steps=24", "data.batch_size=16", "model.embed_dim=64", "heads.hidden_dim=128"),
        *("optimizer.lr=2e-4", "optimizer.warmup_steps=5", "teacher.temperature=0.04"),
    )
    found = [line for line in lines_of(tmp_path / "run") if "verdict" in line]
    assert [line["complaint"] for line in found] == [""] * len(found)
    assert found[-1]["verdict"] == HEALTHY


def test_the_usual_layer_scale_starts_with_one_class_token_and_too_early_to_say(
    train: Callable[..., Trainer], lines_of: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    train(*WATCHED, "steps=12", "model.init_values=1e-5", "optimizer.warmup_steps=11", "optimizer.lr=1e-5")
    found = [line for line in lines_of(tmp_path / "run") if "verdict" in line]
    assert all("same feature" in line["complaint"] for line in found)
    assert [line["verdict"] for line in found] == [EARLY] * 5 + [COLLAPSING]
