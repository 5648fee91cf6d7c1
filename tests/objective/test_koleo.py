"""KoLeo: equal to the reference in value and gradient, and what it means."""

import torch
import torch.nn.functional as F

from franca.objective import koleo_loss


def test_reference_koleo(losses):
    features = torch.from_numpy(losses["koleo/x"]).requires_grad_()
    ours = koleo_loss(features)
    torch.testing.assert_close(ours.item(), float(losses["koleo/loss"]), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(ours, features)
    torch.testing.assert_close(gradient, torch.from_numpy(losses["koleo/grad"]), atol=2e-6, rtol=1e-5)
    duplicate = koleo_loss(torch.from_numpy(losses["koleo/x_duplicate"]))
    torch.testing.assert_close(duplicate.item(), float(losses["koleo/loss_duplicate"]), rtol=1e-5, atol=0)


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


def test_koleo_is_full_precision_under_autocast():
    torch.manual_seed(0)
    features = torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = koleo_loss(features)
    assert autocast.dtype == torch.float32
    torch.testing.assert_close(autocast, koleo_loss(features), atol=0, rtol=0)
