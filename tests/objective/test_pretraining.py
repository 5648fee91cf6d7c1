"""The objective as a whole: its parts add up, and equal the same objective written as plain loops."""

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from franca.objective import LossReport, ObjectiveConfig, PretrainingObjective, StudentTeacher

TEMPERATURE = 0.06


def gradients(pair: StudentTeacher) -> dict[str, Tensor]:
    """Of every parameter; zero where the loss doesn't reach it."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in pair.student.named_parameters()
    }


def loop_objective(pair: StudentTeacher, batch, config: ObjectiveConfig) -> Tensor:
    """One step's loss by its definition, one crop and one row at a time, whatever the number of levels (slow).

    With one level this is DINOv2's: crop loss of every student crop against every other teacher crop, patch loss of
    iBOT, KoLeo, Sinkhorn centering in its usual form (no logarithms, total mass 1).
    """

    def assign(logits: Tensor) -> Tensor:
        mass = (logits / TEMPERATURE).exp().T  # (K, rows)
        mass = mass / mass.sum()
        for _ in range(config.sinkhorn_iterations):
            mass = mass / mass.sum(dim=1, keepdim=True) / mass.shape[0]
            mass = mass / mass.sum(dim=0, keepdim=True) / mass.shape[1]
        return (mass * mass.shape[1]).T

    def disagreement(target: Tensor, logits: Tensor) -> Tensor:
        return -(target * F.log_softmax(logits / config.student_temperature, dim=-1)).sum()

    b, crops, masks = batch.n_images, batch.global_crops, batch.masks
    local = [] if batch.local_crops is None else list(batch.local_crops.split(b))
    n = 2 + 2 * len(local)
    with torch.no_grad():
        features = pair.teacher.backbone.forward_features(crops)
        crop_targets = [assign(logits) for logits in pair.teacher.dino_head(features["x_norm_clstoken"])]
        masked_rows = features["x_norm_patchtokens"][masks]
        patch_targets = [assign(logits) for logits in pair.teacher.ibot_head(masked_rows)] if len(masked_rows) else []

    student = pair.student.backbone.forward_features(crops, masks)
    class_tokens, patches = student["x_norm_clstoken"], student["x_norm_patchtokens"]
    total = crops.new_zeros(())
    for level, target in enumerate(crop_targets):
        logits = pair.student.dino_head(class_tokens)[level]
        for image in range(b):
            for mine, other in ((image, b + image), (b + image, image)):
                # 2/n of the mean over 2B rows
                total = total + config.crop_weight * 2 / n / (2 * b) * disagreement(target[other], logits[mine])
        for crop in local:
            logits = pair.student.dino_head(pair.student.backbone(crop))[level]
            for teacher_row in range(2 * b):
                image = teacher_row % b
                total = total + config.crop_weight / n / b * disagreement(target[teacher_row], logits[image])
    for level, target in enumerate(patch_targets):
        row = 0
        for crop in range(2 * b):
            hidden = masks[crop].nonzero().flatten().tolist()
            for position in hidden:
                logits = pair.student.ibot_head(patches[crop, position][None])[level][0]
                total = total + config.patch_weight / len(hidden) / (2 * b) * disagreement(target[row], logits)
                row += 1
    for tokens in class_tokens.split(b):
        unit = F.normalize(tokens, dim=1)
        distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = (distances + torch.eye(b) * 10).min(dim=1).values
        total = total - config.koleo_weight * nearest.log().mean()
    return total


def check_equal(objective: PretrainingObjective, batch) -> LossReport:
    """Value and every gradient of the objective against the loops."""
    pair = objective.pair
    report = objective(batch, TEMPERATURE)
    report.total.backward()
    ours = gradients(pair)
    pair.zero_grad()
    expected = loop_objective(pair, batch, objective.config)
    expected.backward()
    torch.testing.assert_close(report.total, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(pair).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-6, msg=name)
    return report


@pytest.mark.parametrize("n_local", [None, 3])
def test_one_level_is_dinov2(make_pair, make_batch, form_batch, n_local):
    """Block masks, one level: the DINOv2 objective written out by hand."""
    plain = make_batch(n_local=n_local, masked=False, padding=0)
    masks = torch.zeros(2 * plain.n_images, 4, 4, dtype=torch.bool)
    masks[1, :2, 1:3] = masks[4, 1:, :2] = masks[6, 3:, :] = True
    batch = form_batch(plain.global_crops, plain.local_crops, masks.flatten(1), padding=5)
    report = check_equal(PretrainingObjective(make_pair(nesting=(1,)), ObjectiveConfig()), batch)
    assert all(len(values) == 1 for values in report.levels.values())


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(),
        ObjectiveConfig(
            student_temperature=0.2, sinkhorn_iterations=5, crop_weight=0.5, patch_weight=2.0, koleo_weight=0.3
        ),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_several_levels_equal_the_loops(make_pair, make_batch, config, masked):
    check_equal(PretrainingObjective(make_pair(), config), make_batch(masked=masked))


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
    report = objective.student_loss(batch, targets)
    student = pair.student.backbone.forward_features(batch.global_crops, batch.masks)["x_norm_clstoken"]
    torch.testing.assert_close(report.features, student.detach())
    for ours, expected in zip(report.student_logits, pair.student.dino_head(student), strict=True):
        torch.testing.assert_close(ours, expected.detach())
    teacher = pair.teacher.backbone(batch.global_crops)
    torch.testing.assert_close(targets.class_tokens, teacher)
    for ours, expected in zip(targets.crop_logits, pair.teacher.dino_head(teacher), strict=True):
        torch.testing.assert_close(ours, expected)
    for target in targets.crop:
        torch.testing.assert_close(target.sum(dim=1), torch.ones(2 * batch.n_images))
    for target in targets.patch:
        torch.testing.assert_close(target.sum(dim=1), batch.mask_valid.float())
    tensors = [report.features, *report.student_logits, *report.terms.values(), *report.levels.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.fixture
def halves(make_batch, form_batch) -> tuple:
    """A batch, and the micro-batches of its first and second half, each with padding of another length."""
    batch = make_batch(n_images=4)

    def images(crops: Tensor, half: int) -> Tensor:
        return torch.cat([crop.chunk(2)[half] for crop in crops.split(batch.n_images)])

    crops = (batch.global_crops, batch.local_crops, batch.masks)
    return batch, [form_batch(*(images(part, half) for part in crops), padding=2 + 3 * half) for half in range(2)]


def test_gradient_accumulation_equals_the_whole_batch(make_pair, halves):
    pair, (batch, parts) = make_pair(), halves
    objective = PretrainingObjective(pair, ObjectiveConfig(koleo_weight=0.0))
    whole = objective(batch, TEMPERATURE)
    whole.total.backward()
    expected = gradients(pair)
    pair.zero_grad()

    reports = [
        objective.student_loss(part, targets)
        for part, targets in zip(parts, objective.assign(parts, TEMPERATURE), strict=True)
    ]
    for report in reports:
        (report.total / len(reports)).backward()
    torch.testing.assert_close(sum(report.total for report in reports) / len(reports), whole.total)
    for name, values in whole.levels.items():
        torch.testing.assert_close(sum(report.levels[name] for report in reports) / len(reports), values)
    for name, gradient in gradients(pair).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_targets_of_micro_batches_depend_on_each_other(make_pair, halves):
    """One Sinkhorn over all rows: alone, a half gets other targets."""
    objective = PretrainingObjective(make_pair(), ObjectiveConfig())
    _, parts = halves
    joint, alone = objective.assign(parts, TEMPERATURE)[0], objective.assign(parts[:1], TEMPERATURE)[0]
    assert (joint.crop[-1] - alone.crop[-1]).abs().max() > 1e-3


def test_the_teacher_s_crop_a_teaches_the_student_s_crop_b(make_pair, make_batch):
    """Targets of crop a changed: only the student's rows of crop b feel it, in the global term."""
    objective, batch = PretrainingObjective(make_pair(), ObjectiveConfig()), make_batch(n_local=None)
    (targets,) = objective.assign([batch], TEMPERATURE)
    captured: list[Tensor] = []

    def keep(_module, _arguments, logits: list[Tensor]) -> None:
        logits[-1].retain_grad()
        captured.append(logits[-1])

    objective.pair.student.dino_head.register_forward_hook(keep)
    objective.student_loss(batch, targets).total.backward()
    targets.crop[-1][: batch.n_images] = 1 / targets.crop[-1].shape[1]
    objective.student_loss(batch, targets).total.backward()
    moved = (captured[0].grad - captured[1].grad).abs().amax(dim=1)
    assert (moved[: batch.n_images] == 0).all()
    assert (moved[batch.n_images :] > 0).all()


def test_padding_changes_nothing_and_has_exactly_no_gradient(make_pair, make_batch):
    rows: list[Tensor] = []

    def keep(_module, arguments: tuple[Tensor]) -> None:
        if arguments[0].requires_grad:
            arguments[0].retain_grad()
            rows.append(arguments[0])

    reports = []
    for padding in (0, 7):
        pair, batch = make_pair(), make_batch(padding=padding)
        pair.student.ibot_head.register_forward_pre_hook(keep)
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
    for name, gradient in gradients(pair).items():
        assert gradient.isfinite().all(), name
        assert name.startswith("backbone") or name.startswith("dino") or (gradient == 0).all(), name


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
