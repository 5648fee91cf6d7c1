"""The objective as a whole: what it reports, what it leaves alone, and that it never waits or breaks."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from franca.models import MatryoshkaHead
from franca.models.matryoshka_head import Factors
from franca.objective import ObjectiveConfig, PretrainingObjective, sinkhorn_assignments

TEMPERATURE = 0.06


def test_terms_add_up_to_the_total_and_levels_to_their_term(make_pair, make_batch):
    report = PretrainingObjective(make_pair(), ObjectiveConfig())(make_batch(), TEMPERATURE)
    assert set(report.terms) == {"crop_local", "crop_global", "patch", "koleo"}
    torch.testing.assert_close(sum(report.terms.values()), report.total.detach())
    assert set(report.levels) == {"crop_local", "crop_global", "patch"}
    for name, values in report.levels.items():
        assert values.shape == (3,)
        torch.testing.assert_close(values.sum(), report.terms[name])


def test_what_is_reported_for_the_monitor(make_pair, make_batch):
    pair, batch = make_pair(), make_batch()
    objective = PretrainingObjective(pair, ObjectiveConfig())
    (targets,) = objective.assign([batch], TEMPERATURE)
    patches = [target.dense() for target in targets.patch]
    report = objective.student_loss(batch, targets)
    assert targets.patch == []  # used up: nothing holds them through the backward pass
    student = pair.student.backbone.forward_features(batch.global_crops, batch.masks)["x_norm_clstoken"]
    torch.testing.assert_close(report.features, student.detach())
    assert torch.equal(report.choices, pair.student.dino_head(student)[-1].argmax(dim=1))
    teacher = pair.teacher.backbone(batch.global_crops)
    torch.testing.assert_close(targets.class_tokens, teacher)
    for ours, logits in zip(targets.crop, pair.teacher.dino_head(teacher), strict=True):
        torch.testing.assert_close(ours.dense(), sinkhorn_assignments(logits, TEMPERATURE), atol=1e-5, rtol=1e-4)
    for assigned in patches:
        torch.testing.assert_close(assigned.sum(dim=1), batch.mask_valid.float())
    tensors = [report.features, report.choices, *report.terms.values(), *report.levels.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


def keep_rows(head: MatryoshkaHead) -> list[Tensor]:
    """Every tensor of rows that the widest level of the head gives from now on; their gradients are kept."""
    captured: list[Tensor] = []
    factors = head.factors

    def keep(features: Tensor) -> list[Factors]:
        levels = factors(features)
        levels[-1].rows.retain_grad()
        captured.append(levels[-1].rows)
        return levels

    head.factors = keep  # type: ignore[method-assign]
    return captured


def test_the_teacher_s_crop_a_teaches_the_student_s_crop_b(make_pair, make_batch):
    """Targets of crop a changed: only the student's rows of crop b feel it, in the global term."""
    objective, batch = PretrainingObjective(make_pair(), ObjectiveConfig()), make_batch(n_local=None)
    (targets,) = objective.assign([batch], TEMPERATURE)
    captured = keep_rows(objective.pair.student.dino_head)
    again = replace(targets, patch=list(targets.patch))
    objective.student_loss(batch, targets).total.backward()
    targets.crop[-1].scores.values[: batch.n_images] = 0
    objective.student_loss(batch, again).total.backward()
    moved = (captured[0].grad - captured[1].grad).abs().amax(dim=1)
    assert (moved[: batch.n_images] == 0).all()
    assert (moved[batch.n_images :] > 0).all()


def test_padding_changes_nothing_and_has_exactly_no_gradient(make_pair, make_batch):
    reports = []
    for padding in (0, 7):
        pair, batch = make_pair(), make_batch(padding=padding)
        rows = keep_rows(pair.student.ibot_head)
        reports.append(PretrainingObjective(pair, ObjectiveConfig())(batch, TEMPERATURE))
        reports[-1].total.backward()
        assert (rows[-1].grad[~batch.mask_valid] == 0).all()
        assert (rows[-1].grad[batch.mask_valid].abs().amax(dim=1) > 0).all()
    torch.testing.assert_close(reports[0].total, reports[1].total)


@pytest.mark.parametrize("padding", [0, 6])
def test_no_masked_patch_at_all(make_pair, make_batch, padding):
    pair = make_pair()
    report = PretrainingObjective(pair, ObjectiveConfig())(make_batch(masked=False, padding=padding), TEMPERATURE)
    report.total.backward()
    assert report.terms["patch"] == 0
    assert report.total.isfinite()
    for name, parameter in pair.student.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert not name.startswith("ibot_head") or (parameter.grad == 0).all(), name


@pytest.mark.parametrize("n_local", [None, 0])
def test_without_local_crops_both_global_rows_count_one(make_pair, make_batch, n_local):
    report = PretrainingObjective(make_pair(), ObjectiveConfig())(make_batch(n_local=n_local), TEMPERATURE)
    assert report.terms["crop_local"] == 0
    assert report.levels["crop_local"].tolist() == [0.0] * 3
    assert report.terms["crop_global"] > 0


def test_koleo_weight_zero_skips_it_and_keeps_the_term(make_pair, make_batch, monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("KoLeo was computed")

    monkeypatch.setattr("franca.objective.pretraining.koleo_loss", refuse)
    report = PretrainingObjective(make_pair(), ObjectiveConfig(koleo_weight=0.0))(make_batch(), TEMPERATURE)
    assert report.terms["koleo"] == 0


def test_the_teacher_sees_no_mask_and_gets_no_gradient(make_pair, make_batch):
    pair, batch = make_pair(), make_batch()
    objective = PretrainingObjective(pair, ObjectiveConfig())
    (masked,) = objective.assign([batch], TEMPERATURE)
    (plain,) = objective.assign([replace(batch, masks=torch.zeros_like(batch.masks))], TEMPERATURE)
    torch.testing.assert_close(masked.class_tokens, plain.class_tokens, atol=0, rtol=0)
    objective(batch, TEMPERATURE).total.backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert all(parameter.grad is not None for parameter in pair.student.parameters())


def test_temperature_as_tensor_and_one_reduction_a_round(make_pair, make_batch):
    """All levels of both heads travel in one vector, once per round."""
    calls: list[int] = []

    def reduce(masses: Tensor) -> Tensor:
        calls.append(len(masses))
        return masses

    pair, batch = make_pair(), make_batch()
    objective = PretrainingObjective(pair, ObjectiveConfig(sinkhorn_iterations=2), reduce)
    report = objective(batch, torch.tensor(TEMPERATURE))
    assert calls == [sum(pair.teacher.dino_head.prototypes) + sum(pair.teacher.ibot_head.prototypes)] * 2
    expected = PretrainingObjective(pair, ObjectiveConfig(sinkhorn_iterations=2))(batch, TEMPERATURE)
    torch.testing.assert_close(report.total, expected.total)


@pytest.mark.parametrize("n_local", [None, 2])
def test_nothing_in_a_step_reads_values_back(make_pair, make_batch, n_local):
    """On the meta device there are no values: an .item() or a shape that depends on values would raise."""
    pair, batch = make_pair().to("meta"), make_batch(n_local=n_local)
    on_device = {
        field.name: getattr(batch, field.name).to("meta")
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    report = PretrainingObjective(pair, ObjectiveConfig())(replace(batch, **on_device), torch.tensor(TEMPERATURE))
    report.total.backward()
    pair.update_teacher(0.99)
    assert report.total.device.type == "meta"


def test_under_autocast_the_losses_stay_in_full_precision(make_pair, make_batch):
    pair, batch = make_pair(), make_batch()
    objective = PretrainingObjective(pair, ObjectiveConfig())
    exact = objective(batch, TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        report = objective(batch, TEMPERATURE)
    report.total.backward()
    assert report.total.dtype == torch.float32
    assert all(values.dtype == torch.float32 for values in (*report.terms.values(), *report.levels.values()))
    torch.testing.assert_close(report.total, exact.total, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("student_temperature", 0.0),
        ("student_temperature", math.nan),
        ("sinkhorn_iterations", 0),
        ("crop_weight", -1.0),
        ("patch_weight", math.inf),
        ("koleo_weight", -0.1),
    ],
)
def test_bad_options_are_named_with_their_value(field, value):
    with pytest.raises(ValueError, match=rf"objective\.{field} is {value}"):
        ObjectiveConfig(**{field: value})


def test_an_objective_without_any_target_is_refused():
    with pytest.raises(ValueError, match="both 0"):
        ObjectiveConfig(crop_weight=0.0, patch_weight=0.0)
