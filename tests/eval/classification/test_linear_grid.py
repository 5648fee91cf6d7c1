"""A grid of classifiers trains each as PyTorch's own SGD and cosine schedule would train it alone."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from franca.eval.errors import EvalError
from franca.eval.protocols.linear_grid import HeadGrid
from franca.eval.protocols.linear_head import HeadInput, LinearHead, load_head, save_head
from franca.eval.protocols.order import Order
from franca.eval.store import ImageFeatures

READS = [HeadInput(1, 6), HeadInput(3, 6, 5), HeadInput(2, 3)]
RATES = [0.01, 0.3]
STEPS, B, CLASSES = 12, 10, 4


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(B, 3, 6, generator=random),
            torch.randn(B, 3, 6, generator=random),
            torch.randint(CLASSES, (B,), generator=random),
        )
        for _ in range(STEPS)
    ]


def trained(rates: list[float] = RATES, reads: list[HeadInput] = READS) -> HeadGrid:
    grid = HeadGrid(reads, rates, CLASSES, STEPS, torch.device("cpu"))
    for batch in batches():
        grid.learn(*batch)
    return grid


def test_equals_sgd_of_each_head_alone() -> None:
    start = HeadGrid(READS, RATES, CLASSES, STEPS, torch.device("cpu")).heads()
    for (begun, rate), (found, _) in zip(start, trained().heads(), strict=True):
        linear = nn.Linear(begun.reads.dim, CLASSES)
        with torch.no_grad():
            linear.weight.copy_(begun.weight)
            linear.bias.copy_(begun.bias)
        solver = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)
        schedule = CosineAnnealingLR(solver, STEPS)
        for cls, mean_patch, labels in batches():
            solver.zero_grad()
            nn.functional.cross_entropy(linear(begun.reads.of(cls, mean_patch)), labels).backward()
            solver.step()
            schedule.step()
        torch.testing.assert_close(found.weight, linear.weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.bias, linear.bias.detach(), atol=1e-5, rtol=1e-4)


def test_first_weights_are_small_and_the_same_for_every_rate() -> None:
    grid = HeadGrid([HeadInput(1, 500)], [0.1, 0.2], 40, 1, torch.device("cpu"))
    (first, _), (second, _) = grid.heads()
    assert torch.equal(first.weight, second.weight)
    assert float(first.weight.std()) == pytest.approx(0.01, rel=0.02)
    assert not first.bias.any()


def test_a_rate_that_diverges_harms_no_other() -> None:
    alone = {(head.reads, rate): head for head, rate in trained().heads()}
    beside = {(head.reads, rate): head for head, rate in trained([0.01, 1e38, 0.3]).heads()}
    assert beside.keys() == alone.keys()
    for key, head in alone.items():
        torch.testing.assert_close(beside[key].weight, head.weight)


def test_inputs_are_the_last_class_tokens_then_the_mean_patch() -> None:
    cls = torch.arange(24.0).view(1, 4, 6)
    assert HeadInput(2, 2, 3).of(cls, -cls).tolist() == [[12, 13, 18, 19, -18, -19, -20]]
    assert HeadInput(1, 6).of(cls, -cls).tolist() == [[18, 19, 20, 21, 22, 23]]
    assert HeadInput(2, 2, 3).dim == 7


def test_a_restored_grid_goes_on_as_if_nothing_had_happened() -> None:
    grid = HeadGrid(READS, RATES, CLASSES, STEPS, torch.device("cpu"))
    for batch in batches()[:5]:
        grid.learn(*batch)
    state = grid.state()
    grid.learn(*batches()[5])  # changes no state that was taken before
    other = HeadGrid(READS, RATES, CLASSES, STEPS, torch.device("cpu"), seed=9)
    other.restore(state)
    assert other.step == 5
    for batch in batches()[5:]:
        other.learn(*batch)
    for (found, _), (wanted, _) in zip(other.heads(), trained().heads(), strict=True):
        assert torch.equal(found.weight, wanted.weight)


def test_every_turn_of_the_order_is_a_permutation() -> None:
    order = Order(7, "a", 1)
    places = order.at(0, 28)
    for turn in places.split(7):
        assert turn.sort().values.tolist() == list(range(7))
    assert not torch.equal(places[:7], places[7:14])
    pieces = [Order(7, "a", 1).at(first, 4) for first in range(0, 28, 4)]
    assert torch.equal(torch.cat(pieces), places)
    for other in (Order(7, "a", 2), Order(7, "b", 1)):
        assert not torch.equal(other.at(0, 28), places)


def test_a_saved_head_is_read_back(tmp_path) -> None:
    random = torch.Generator().manual_seed(0)
    head = LinearHead(READS[1], torch.randn(4, 23, generator=random), torch.randn(4, generator=random))
    cls, mean_patch, _ = batches()[0]
    features = ImageFeatures(cls.half(), mean_patch.half(), torch.arange(B), None)
    save_head(tmp_path / "head.pth", head, {"model": "abc", "rate": 0.1}, ["a", "b", "c", "d"])
    found, about, classes = load_head(tmp_path / "head.pth")
    assert torch.equal(found.scores(features), head.scores(features))
    wanted = head.reads.of(features.cls, features.mean_patch) @ head.weight.T + head.bias
    torch.testing.assert_close(found.scores(features), wanted)
    assert (about, classes) == ({"model": "abc", "rate": 0.1}, ["a", "b", "c", "d"])


def test_another_file_is_no_head(tmp_path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("other.pth", "text.pth", "missing.pth"):
        with pytest.raises(EvalError, match=f"{name} holds no classifier"):
            load_head(tmp_path / name)
