"""The streaming objective: equal to whole matrices on the same stored logits, in a fraction of their memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from franca.objective import blocks, chunked, eager, precision, prediction
from franca.objective.assignments import Assignments, Scores
from franca.objective.prediction import Prediction, predict
from franca.objective.sinkhorn import balance

T, TAU = 0.04, 0.1
TEACHERS = {"patches": [(0,)], "crops": [(1,), (0,), (0, 1), (0, 1), (0, 1)]}


@pytest.fixture(params=["whole", "in blocks"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that sizes leave remainders; and all rows at once."""
    if request.param == "in blocks":
        monkeypatch.setattr(blocks, "SCORES", 900)
        monkeypatch.setattr(chunked, "BLOCK", 250)


class Case:
    """Random rows and prototypes of a student, and what its teacher assigned."""

    def __init__(self, seed: int, rows: int, prototypes: int, kind: str, padded: bool, width: int = 24) -> None:
        make = torch.Generator().manual_seed(seed)

        def unit(count: int) -> Tensor:
            return F.normalize(torch.randn(count, width, generator=make), dim=1)

        self.teachers = TEACHERS[kind]
        views, targets = len(self.teachers), 1 + max(max(key) for key in self.teachers)
        self.rows, self.prototypes = unit(views * rows).requires_grad_(), unit(prototypes).requires_grad_()
        self.weights = torch.rand(views * rows, generator=make)
        self.valid = torch.rand(targets * rows, generator=make) < 0.7 if padded else None
        if self.valid is not None:
            self.weights *= self.valid[:rows].repeat(views)
        self.answer, self.scored = unit(targets * rows), unit(prototypes)
        self.count = rows

    def assign(self) -> list[Assignments]:
        """One after the other, as the batch's crops are."""
        (all_rows,) = balance([Scores.of(self.answer, self.scored, self.valid)], T)
        targets = 1 + max(max(key) for key in self.teachers)
        return [all_rows[number * self.count : (number + 1) * self.count] for number in range(targets)]

    def predict(self, function: Callable[..., Prediction], targets: list) -> Prediction:
        return function(self.rows, self.prototypes, self.weights, targets, self.teachers, TAU, choose=True)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.rows, self.prototypes]))


def whole(targets: list[Assignments]) -> list[eager.WrittenAssignments]:
    """The same assignments by the eager form, from the stored logits of all rows."""
    scores = [target.scores for target in targets]
    logits = torch.cat([score.values.float() + score.peaks[:, None] for score in scores])
    valid = None if scores[0].valid is None else torch.cat([score.valid for score in scores])
    return [eager.WrittenAssignments(part) for part in eager.assignments(logits, T, 3, valid).split(len(targets[0]))]


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


sizes = pytest.mark.parametrize(
    ("rows", "prototypes", "padded"), [(1, 3, False), (13, 97, True), (64, 40, False), (37, 300, True)]
)


@sizes
@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.usefixtures("cut")
def test_in_fp32_losses_and_gradients_are_those_of_whole_matrices(rows, prototypes, padded, kind):
    case = Case(rows, rows, prototypes, kind, padded)
    targets = case.assign()
    for ours, reference in zip(targets, whole(targets), strict=True):
        torch.testing.assert_close(ours.dense(), reference.q, atol=2e-6, rtol=1e-5)
    ours, reference = case.predict(predict, targets), case.predict(eager.predict, whole(targets))
    torch.testing.assert_close(ours.loss, reference.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.per_row, reference.per_row, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.choices, reference.choices)
    for gradient, expected in zip(case.gradients(ours.loss), case.gradients(reference.loss), strict=True):
        assert relative(gradient, expected) <= 1e-5


@sizes
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.usefixtures("cut")
def test_in_mixed_precision_the_gradient_of_the_logits_is_within_a_thousandth(rows, prototypes, padded, stored):
    """What the products of an accelerator are given: stored in fp16, with the factor that keeps it in range."""
    case = Case(rows, rows, prototypes, "patches", padded)
    with torch.autocast("cpu", torch.bfloat16):
        (target,) = case.assign()
    assert target.scores.values.dtype == torch.float16
    logits = (case.rows @ case.prototypes.T).detach().requires_grad_()
    gradient = torch.empty(1, rows, prototypes, dtype=stored)
    loss = chunked.cross_entropy(logits.detach()[None], [target], [(0,)], 1 / TAU, gradient)[0]
    expected = eager.cross_entropy(logits, whole([target])[0].q, TAU)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    (reference,) = torch.autograd.grad(expected.sum(), logits)
    assert relative(gradient[0].float() / (chunked.GAIN * TAU), reference) <= (
        1e-3 if stored == torch.float16 else 1e-5
    )


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.usefixtures("cut")
def test_under_autocast_parameters_learn_no_less_exactly_than_by_autograd(kind):
    """Products of bf16 numbers round; the eager form rounds logits, their gradients and the products."""
    case = Case(0, 48, 160, kind, padded=False)
    with torch.autocast("cpu", torch.bfloat16):
        targets = case.assign()
        ours = case.gradients(case.predict(predict, targets).loss)
        rounded = case.gradients(case.predict(eager.predict, whole(targets)).loss)
    exact = case.gradients(case.predict(eager.predict, whole(targets)).loss)
    for gradient, same_in_bf16, expected in zip(ours, rounded, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert relative(gradient, expected) <= 1.1 * relative(same_in_bf16, expected)


@pytest.mark.parametrize(("length", "common", "tolerance"), [(1, 0, 8e-4), (1, 1, 2e-3), (20, 0, 2e-3), (20, 1, 1e-2)])
def test_stored_logits_err_less_than_bf16_does(length, common, tolerance):
    """At the recipe's temperature. Rows that share a direction put their mass further from their largest logit."""
    torch.manual_seed(0)
    rows = length * F.normalize(torch.randn(64, 256) + common * torch.randn(256), dim=1)
    logits = rows @ F.normalize(torch.randn(400, 256), dim=1).T
    exact = eager.assignments(logits.double(), T)
    stored = Scores.of_logits(logits)
    ours = balance([Scores(stored.values.half(), stored.peaks)], T)[0].dense()
    assert relative(ours, exact) <= tolerance
    assert relative(eager.assignments(logits.bfloat16(), T), exact) > 2 * relative(ours, exact)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_logits_of_a_thousand_are_finite_and_those_of_fp32(autocast):
    """Prototypes that no row is near included: a dead column would be lost or infinite."""
    case = Case(3, 29, 70, "crops", padded=False)
    case.scored, case.prototypes = 1000 * case.scored, (1000 * case.prototypes).detach().requires_grad_()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        targets = case.assign()
        ours = case.predict(predict, targets)
        gradients = case.gradients(ours.loss)
    for target, reference in zip(targets, whole(targets), strict=True):
        assert target.dense().isfinite().all()
        torch.testing.assert_close(target.dense(), reference.q, atol=2e-3, rtol=0)  # fp32's rounding of 1000 / T
    assert all(gradient.isfinite().all() for gradient in gradients)
    if autocast is None:
        reference = case.predict(eager.predict, [eager.WrittenAssignments(target.dense()) for target in targets])
        torch.testing.assert_close(ours.loss, reference.loss, rtol=1e-5, atol=0)
        for gradient, expected in zip(gradients, case.gradients(reference.loss), strict=True):
            assert relative(gradient, expected) <= 1e-5


def test_a_padding_row_may_hold_anything():
    case = Case(1, 20, 50, "patches", padded=True)
    (expected,) = case.assign()
    case.answer[~case.valid] = torch.nan
    (ours,) = case.assign()
    assert torch.equal(ours.dense(), expected.dense())


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made, views aside."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def test_nothing_as_large_as_the_assignments_is_made(monkeypatch):
    """But the stored logits, in 16 bits."""
    monkeypatch.setattr(blocks, "SCORES", 2**12)
    monkeypatch.setattr(chunked, "BLOCK", 2**11)
    case = Case(0, 200, 500, "patches", padded=True, width=8)
    with Largest() as largest, torch.autocast("cpu", torch.bfloat16):
        case.gradients(case.predict(predict, case.assign()).loss)
    assert largest.bytes == 2 * 200 * 500


def test_a_gradient_is_given_once():
    case = Case(0, 4, 6, "patches", padded=False)
    loss = case.predict(predict, case.assign()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given once"):
        loss.backward()


def test_without_rows_the_loss_is_zero():
    case = Case(0, 0, 6, "patches", padded=False)
    answer = case.predict(predict, case.assign())
    assert answer.loss == 0
    assert [gradient.shape for gradient in case.gradients(answer.loss)] == [(0, 24), (6, 24)]


@pytest.fixture
def full_sums(monkeypatch) -> None:
    """Products as of a device that gives fp32 sums of 16-bit factors."""
    monkeypatch.setattr(precision, "_sums_come_out_in_full", lambda device: True)
    monkeypatch.setattr(precision, "_product_in_full", lambda left, right: left.float() @ right.float())


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.usefixtures("full_sums", "cut")
def test_fp16_factors_of_unit_rows_give_gradients_within_a_thousandth(kind):
    case = Case(0, 48, 160, kind, padded=False)
    with torch.no_grad():
        for factor in (case.rows, case.prototypes, case.answer, case.scored):
            factor.copy_(factor.half())  # what the products are given
    with torch.autocast("cpu", torch.bfloat16):
        targets = case.assign()
        ours = case.predict(predict, targets)
        gradients = case.gradients(ours.loss)
    reference = case.predict(eager.predict, whole(targets))
    torch.testing.assert_close(ours.loss, reference.loss, rtol=1e-5, atol=0)
    for gradient, expected in zip(gradients, case.gradients(reference.loss), strict=True):
        assert relative(gradient, expected) <= 1e-3


@pytest.mark.parametrize("length", [1e3, 1e5])
@pytest.mark.usefixtures("full_sums")
def test_rows_of_any_length_stay_finite(length):
    """Heads without normalisation give rows in autocast's type, whose range they may use: fp16's ends at 65,504."""
    case = Case(0, 12, 30, "patches", padded=False)
    case.rows = (length * case.rows).detach().bfloat16().requires_grad_()
    case.answer = (length * case.answer).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        targets = case.assign()
        ours = case.predict(predict, targets)
        gradients = case.gradients(ours.loss)
    assert all(target.dense().isfinite().all() for target in targets)
    assert ours.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_gradient_none_is_made(monkeypatch):
    monkeypatch.setattr(prediction, "_Gradients", None)  # calling it would raise
    case = Case(0, 4, 6, "patches", padded=False)
    with torch.no_grad():
        assert not case.predict(predict, case.assign()).loss.requires_grad
