"""Crop loss, patch loss, KoLeo: equal to the reference in value and gradient, and to the loops they replace."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from franca.objective import crop_loss, koleo_loss, patch_loss
from franca.objective.losses import cross_entropy


def check_reference(losses, levels, name: str, ours: Tensor, student: list[Tensor]) -> list[Tensor]:
    """Loss, per level, and gradient of `name` in losses.npz; returns the gradients."""
    torch.testing.assert_close(ours.sum().item(), float(losses[f"{name}/loss"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.detach(), torch.from_numpy(losses[f"{name}/per_level"]), rtol=1e-5, atol=0)
    gradients = list(torch.autograd.grad(ours.sum(), student))
    for gradient, reference in zip(gradients, levels(f"{name}/grad"), strict=True):
        torch.testing.assert_close(gradient, reference, atol=2e-6, rtol=1e-5)
    return gradients


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def test_reference_local_crops(losses, levels):
    student, n_images = leaves(levels("dino_local/student")), int(losses["n_images"])
    both = [target[:n_images] + target[n_images:] for target in levels("dino_sinkhorn/out_iter3")]
    check_reference(losses, levels, "dino_local", crop_loss(student, both, float(losses["student_temp"])), student)


def test_reference_global_crops(losses, levels):
    student = leaves(levels("dino_global/student"))
    ours = crop_loss(student, levels("dino_sinkhorn/out_iter3"), float(losses["student_temp"]))
    check_reference(losses, levels, "dino_global", ours, student)


def test_reference_patches(losses, levels):
    student, real = leaves(levels("ibot/student")), int(losses["ibot/n_masked_patches"])
    padding = len(student[0]) - real
    targets = [F.pad(target, (0, 0, 0, padding)) for target in levels("ibot_sinkhorn/out")]
    weights = F.pad(torch.from_numpy(losses["ibot/masks_weight"]), (0, padding))
    n_crops = len(losses["ibot/masks"])
    ours = patch_loss(student, targets, weights, n_crops, float(losses["student_temp"]))
    for gradient in check_reference(losses, levels, "ibot", ours, student):
        assert (gradient[real:] == 0).all()


def test_reference_koleo(losses):
    features = torch.from_numpy(losses["koleo/x"]).requires_grad_()
    ours = koleo_loss(features)
    torch.testing.assert_close(ours.item(), float(losses["koleo/loss"]), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(ours, features)
    torch.testing.assert_close(gradient, torch.from_numpy(losses["koleo/grad"]), atol=2e-6, rtol=1e-5)
    duplicate = koleo_loss(torch.from_numpy(losses["koleo/x_duplicate"]))
    torch.testing.assert_close(duplicate.item(), float(losses["koleo/loss_duplicate"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_is_that_of_torch(scale):
    torch.manual_seed(0)
    logits, target = scale * torch.randn(5, 7), torch.randn(5, 7).softmax(dim=1)
    expected = F.cross_entropy(logits / 0.1, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target, 0.1), expected, rtol=1e-5, atol=1e-5)


def test_local_crops_against_the_sum_of_targets_replace_the_loop_over_both():
    torch.manual_seed(0)
    n_images, n_local, widths = 3, 4, (5, 9)
    student = [torch.randn(n_local * n_images, width) for width in widths]
    targets = [torch.randn(2 * n_images, width).softmax(dim=1) for width in widths]
    loop = [
        sum(F.cross_entropy(crop / 0.1, target) for crop in logits.chunk(n_local) for target in both.chunk(2))
        for logits, both in zip(student, targets, strict=True)
    ]
    ours = crop_loss(student, [target[:n_images] + target[n_images:] for target in targets], 0.1)
    torch.testing.assert_close(ours, torch.stack(loop))


def test_no_student_rows_give_zero():
    targets = [torch.full((2, 4), 0.25)]
    assert crop_loss([torch.empty(0, 4)], targets, 0.1).tolist() == [0.0]
    assert patch_loss([torch.empty(0, 4)], [torch.empty(0, 4)], torch.empty(0), 2, 0.1).tolist() == [0.0]


def test_koleo_prefers_spread_features_and_ignores_their_length():
    torch.manual_seed(0)
    spread = F.normalize(torch.randn(16, 32), dim=1)
    clumped = F.normalize(spread + 3 * spread[:1], dim=1)
    assert koleo_loss(spread) < koleo_loss(clumped)
    lengths = torch.rand(16, 1) + 0.5
    torch.testing.assert_close(koleo_loss(spread * lengths), koleo_loss(spread))


def test_koleo_is_the_mean_log_distance_to_the_nearest_other_row():
    torch.manual_seed(0)
    features = torch.randn(6, 8)
    distances = torch.cdist(F.normalize(features), F.normalize(features)).fill_diagonal_(torch.inf)
    torch.testing.assert_close(koleo_loss(features), -distances.min(dim=1).values.log().mean(), rtol=1e-4, atol=1e-5)


def test_koleo_of_opposite_rows_does_not_take_a_row_as_its_own_neighbour():
    torch.testing.assert_close(koleo_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), -torch.tensor(2.0).log())


def test_koleo_of_one_row_is_zero():
    assert koleo_loss(torch.randn(1, 8)).item() == 0.0


def test_losses_are_full_precision_under_autocast():
    torch.manual_seed(0)
    student, target, features = torch.randn(6, 8), torch.randn(6, 8).softmax(dim=1), torch.randn(6, 8)
    weights = torch.full((6,), 0.5)

    def values() -> list[Tensor]:
        return [
            crop_loss([student], [target], 0.1),
            patch_loss([student], [target], weights, 4, 0.1),
            koleo_loss(features),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        autocast = values()
    for ours, expected in zip(autocast, values(), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, atol=0, rtol=0)
