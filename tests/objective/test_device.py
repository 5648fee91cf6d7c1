"""The objective's kernels on an accelerator, at sizes that fill it; skipped where none is, or Triton has no driver."""

import pytest
import torch
from torch import Tensor

from franca.objective import chunked, eager, passes
from franca.objective.assignments import Assignments, Scores
from franca.objective.prediction import predict
from franca.objective.sinkhorn import balance

TEMPERATURE, TAU = 0.04, 0.1
TEACHERS = {"patches": [(0,)], "crops": [(1,), (0,), *[(0, 1)] * 8]}
ROWS, WIDTH = 1100, 20_007  # several tiles in every direction, with remainders


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        pytest.skip("no accelerator is here")
    if passes._of_device(found.type) is chunked:
        pytest.skip(f"Triton has no driver for {found.type}")
    torch.manual_seed(0)
    return found


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.float() - reference.float()).norm() / reference.float().norm())


def scored(device: torch.device, rows: int, width: int, kind: torch.dtype, spread: float) -> Scores:
    """Logits within ±spread; a third of the rows takes no part and holds NaN."""
    logits = torch.rand(rows, width, device=device).mul_(2 * spread).sub_(spread)
    valid = torch.rand(rows, device=device) < 0.67
    logits[~valid] = torch.nan
    values, peaks = torch.empty(rows, width, dtype=kind, device=device), torch.empty(rows, device=device)
    passes.store(logits.clone(), values, peaks, valid)
    expected, expected_peaks = torch.empty_like(values), torch.empty_like(peaks)
    chunked.store(logits, expected, expected_peaks, valid)
    assert torch.equal(values, expected)
    assert torch.equal(peaks, expected_peaks)
    return Scores(values, peaks, valid)


def within(spread: float) -> float:
    """1000 / T has fp32 numbers 2e-3 apart, and a device may round a product and a sum once or twice."""
    return 1e-5 if spread == 1 else 5e-3


spreads = pytest.mark.parametrize("spread", [1.0, 1000.0])
kinds = pytest.mark.parametrize("kind", [torch.float16, torch.float32])


@spreads
@kinds
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (130, 513), (ROWS, WIDTH)])
def test_columns(device, rows, width, kind, spread):
    scores = scored(device, rows, width, kind, spread)
    scale = torch.full((1,), 1 / TEMPERATURE, device=device)
    mass = passes.column_logsumexp(scores, scale)
    torch.testing.assert_close(mass, chunked.column_logsumexp(scores, scale), rtol=1e-5, atol=1e-5)
    assignments = Assignments(scores, -mass.masked_fill(mass.isneginf(), 0.0), scale)
    sums = passes.column_sums(assignments)
    torch.testing.assert_close(sums, chunked.column_sums(assignments), rtol=10 * within(spread), atol=1e-6)
    assert torch.equal(sums, passes.column_sums(assignments))  # the same in every run


@spreads
@kinds
@pytest.mark.parametrize("views", TEACHERS)
def test_cross_entropy(device, kind, spread, views):
    teachers = TEACHERS[views]
    count = 1 + max(max(key) for key in teachers)
    rows = ROWS // len(teachers)
    (both,) = balance([scored(device, count * rows, WIDTH, kind, spread)], TEMPERATURE)
    targets = [both[number * rows : (number + 1) * rows] for number in range(count)]
    logits = torch.rand(len(teachers), rows, WIDTH, device=device).mul_(2 * spread).sub_(spread)
    expected = torch.empty_like(logits)
    reference = chunked.cross_entropy(logits, targets, teachers, 1 / TAU, expected)
    for written, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)):
        gradient = torch.empty_like(logits, dtype=written)
        loss = passes.cross_entropy(logits, targets, teachers, 1 / TAU, gradient)
        torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
        assert relative(gradient, expected) <= max(tolerance, within(spread))


@pytest.mark.parametrize(("precision", "tolerance"), [(None, 1e-5), (torch.bfloat16, 1e-3)])
def test_gradient_of_the_logits_is_that_of_whole_matrices(device, precision, tolerance):
    """From the same stored logits: of the teacher, and of the student's logits before they are divided."""
    unit = [torch.nn.functional.normalize(torch.randn(n, 64, device=device), dim=1) for n in (500, WIDTH, 500, WIDTH)]
    with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
        scores = Scores.of(*unit[:2])
        (target,) = balance([scores], TEMPERATURE)
    q = eager.assignments(scores.values.float() + scores.peaks[:, None], TEMPERATURE)
    assert relative(target.dense(), q) <= 1e-5
    logits = (unit[2] @ unit[3].T).requires_grad_()
    (reference,) = torch.autograd.grad(eager.cross_entropy(logits, q, TAU).sum(), logits)
    gradient = torch.empty(1, *logits.shape, device=device, dtype=torch.float16 if precision else torch.float32)
    passes.cross_entropy(logits.detach()[None], [target], [(0,)], 1 / TAU, gradient)
    assert relative(gradient[0].float() / (chunked.GAIN * TAU), reference) <= tolerance


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_parameters_learn_as_by_autograd(device, precision):
    """No less exactly than the eager form in the same precision does; in fp32 both depend on the device's products."""
    rows, prototypes = (torch.randn(n, 64, device=device, requires_grad=True) for n in (300, 5003))
    (target,) = balance([Scores.of(torch.randn(300, 64, device=device), prototypes)], 1.0)
    whole, weights = [eager.WrittenAssignments(target.dense())], torch.rand(300, device=device)

    def gradients(function, targets: list, kind: torch.dtype | None) -> list[Tensor]:
        with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
            loss = function(rows, prototypes, weights, targets, [(0,)], 1.0).loss
        return list(torch.autograd.grad(loss, [rows, prototypes]))

    exact = gradients(eager.predict, whole, None)
    plain = gradients(eager.predict, whole, precision)
    for ours, same, expected in zip(gradients(predict, [target], precision), plain, exact, strict=True):
        assert relative(ours, expected) <= 1.1 * relative(same, expected) + 1e-5
