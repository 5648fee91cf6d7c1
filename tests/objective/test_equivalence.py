"""The objective equals the same thing computed another way: plain loops (DINOv2 among them), and accumulated halves."""

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
    assert (joint.crop[-1].dense() - alone.crop[-1].dense()).abs().max() > 1e-3
