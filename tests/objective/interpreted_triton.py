"""Triton's kernels in its interpreter, against plain PyTorch and whole matrices; `test_triton.py` runs this file.

The interpreter has to be asked for before Triton is imported: TRITON_INTERPRET=1.
"""

import os

import pytest
import torch
from torch import Tensor

from franca.objective import chunked, eager, passes, sinkhorn_assignments, triton_passes
from franca.objective.assignments import Assignments, Scores
from franca.objective.prediction import predict
from franca.objective.sinkhorn import balance

assert os.environ.get("TRITON_INTERPRET") == "1", "TRITON_INTERPRET=1 is not set: test_triton.py sets it"

TEMPERATURE, TAU = 0.04, 0.1
TEACHERS = {"patches": [(0,)], "crops": [(1,), (0,), (0, 1)]}
TILES = {
    "STORED_ROW": 64,
    "ROW": 64,
    "ROWS": 2,
    "COLUMNS": 64,
    "PART": 4,
    "GROUP": 2,
    "GROUP_COLUMNS": 32,
    "FEW": 8,
}
cases = pytest.mark.parametrize(
    ("rows", "width", "kind", "spread"),
    [
        (1, 3, torch.float16, 1.0),
        (9, 70, torch.float16, 1.0),
        (6, 97, torch.float32, 1.0),
        (6, 97, torch.float16, 1000.0),
        (6, 97, torch.float32, 1000.0),
    ],
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in every direction, the last of them with a remainder."""
    for name, size in TILES.items():
        monkeypatch.setattr(triton_passes, name, size)


def random_scores(rows: int, width: int, kind: torch.dtype, spread: float = 1.0) -> tuple[Tensor, Scores]:
    """Logits of which some rows take no part, and as they are stored."""
    make = torch.Generator().manual_seed(rows)
    logits = spread * torch.rand(rows, width, generator=make).mul(2).sub(1)
    valid = torch.rand(rows, generator=make) < 0.7
    valid[0] = True
    values, peaks = torch.empty(rows, width, dtype=kind), torch.empty(rows)
    chunked.store(logits.clone(), values, peaks, valid)
    return logits, Scores(values, peaks, valid)


def balanced(scores: Scores) -> Assignments:
    (assignments,) = balance([scores], TEMPERATURE)
    return assignments


def halves(assignments: Assignments, targets: int) -> list[Assignments]:
    rows = len(assignments) // targets
    return [assignments[number * rows : (number + 1) * rows] for number in range(targets)]


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@cases
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_store(rows, width, kind, spread, given):
    """Logits 65,504 below their row's largest included, the least of fp16."""
    logits, scores = random_scores(rows, width, kind, spread=100 * spread)
    logits = logits.to(given)
    chunked.store(logits.clone(), scores.values, scores.peaks, scores.valid)
    logits[~scores.valid] = torch.nan
    values, peaks = torch.empty_like(scores.values), torch.empty_like(scores.peaks)
    triton_passes.store(logits, values, peaks, scores.valid)
    assert torch.equal(values, scores.values)
    assert torch.equal(peaks, scores.peaks)


def test_store_in_place():
    logits, scores = random_scores(5, 97, torch.float32)
    turned = logits.T.contiguous().T  # lies in memory by columns
    for given in (logits, turned):
        assert torch.equal(Scores.of_logits(given, scores.valid).values, scores.values)


@cases
def test_columns(rows, width, kind, spread):
    _, scores = random_scores(rows, width, kind, spread)
    scale = torch.full((1,), 1 / TEMPERATURE)
    mass = triton_passes.column_logsumexp(scores, scale)
    torch.testing.assert_close(mass, chunked.column_logsumexp(scores, scale), rtol=1e-5, atol=1e-5)
    assignments = Assignments(scores, -mass, scale)
    sums = triton_passes.column_sums(assignments)
    torch.testing.assert_close(sums, chunked.column_sums(assignments), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.sum(), scores.valid.sum().float())


def test_columns_without_a_row_that_takes_part():
    scale = torch.ones(1)
    logits = torch.randn(6, 70)
    logits[:, 4] = -torch.inf
    assert triton_passes.column_logsumexp(Scores(logits, torch.zeros(6)), scale).isneginf().nonzero().tolist() == [[4]]
    for rows in (6, 0):
        scores = Scores(torch.zeros(rows, 70), torch.zeros(rows), torch.zeros(rows, dtype=torch.bool))
        assert triton_passes.column_logsumexp(scores, scale).isneginf().all()
        assert not triton_passes.column_sums(Assignments(scores, torch.zeros(70), scale)).any()


@cases
@pytest.mark.parametrize("views", TEACHERS)
def test_cross_entropy(rows, width, kind, spread, views):
    teachers = TEACHERS[views]
    count = 1 + max(max(key) for key in teachers)
    _, scores = random_scores(count * rows, width, kind, spread)
    targets = halves(balanced(scores), count)
    logits = spread * torch.randn(len(teachers), rows, width)
    expected, slopes = torch.empty_like(logits), torch.empty_like(logits)
    reference = chunked.cross_entropy(logits, targets, teachers, 1 / TAU, expected)
    loss = triton_passes.cross_entropy(logits, targets, teachers, 1 / TAU, slopes)
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    assert relative(slopes, expected) <= 1e-5


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_gradient_in_the_place_of_logits_or_beside_them_or_not_at_all(kind):
    _, scores = random_scores(5, 97, torch.float16)
    target = balanced(scores)
    logits = torch.randn(1, 5, 97).to(kind)
    expected = torch.empty(1, 5, 97)
    reference = chunked.cross_entropy(logits, [target], [(0,)], 1 / TAU, expected)
    beside = torch.empty_like(logits)
    for gradient in (None, beside, logits):
        loss = triton_passes.cross_entropy(logits, [target], [(0,)], 1 / TAU, gradient)
        torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    assert torch.equal(beside, logits)
    assert relative(logits.float(), expected) <= max(torch.finfo(kind).eps, 1e-6)


@pytest.mark.parametrize(
    ("kind", "written", "tolerance"),
    [(torch.float16, torch.float16, 1e-3), (torch.float16, torch.float32, 1e-5), (torch.float32, torch.float32, 1e-5)],
)
def test_gradient_of_logits_is_that_of_whole_matrices(kind, written, tolerance):
    """Assignments by the kernels and by the definition, from the same stored logits."""
    _, scores = random_scores(10, 97, kind)
    targets = halves(balanced(scores), 2)
    whole = scores.values.float() + scores.peaks[:, None]
    q = eager.assignments(whole, TEMPERATURE, 3, scores.valid)
    torch.testing.assert_close(torch.cat([target.dense() for target in targets]), q, rtol=1e-5, atol=1e-6)
    logits = torch.rand(1, 5, 97).mul_(2).sub_(1).requires_grad_()
    expected = eager.cross_entropy(logits[0], q[:5] + q[5:], TAU)
    (reference,) = torch.autograd.grad(expected.sum(), logits)
    gradient = torch.empty(1, 5, 97, dtype=written)
    loss = triton_passes.cross_entropy(logits.detach(), targets, [(0, 1)], 1 / TAU, gradient)
    torch.testing.assert_close(loss[0], expected.detach(), rtol=1e-5, atol=1e-5)
    assert relative(gradient.float() / (chunked.GAIN * TAU), reference) <= tolerance


def test_whole_prediction_goes_through_the_kernels(monkeypatch):
    assert passes._of_device("cpu") is triton_passes
    monkeypatch.setattr(chunked, "store", None)
    monkeypatch.setattr(chunked, "column_logsumexp", None)
    monkeypatch.setattr(chunked, "column_sums", None)
    monkeypatch.setattr(chunked, "cross_entropy", None)
    rows, prototypes = torch.randn(5, 8).requires_grad_(), torch.randn(70, 8).requires_grad_()
    target = balanced(Scores.of(torch.randn(5, 8), torch.randn(70, 8)))
    weights = torch.rand(5)
    ours = predict(rows, prototypes, weights, [target], [(0,)], TAU)
    reference = eager.predict(rows, prototypes, weights, [eager.WrittenAssignments(target.dense())], [(0,)], TAU)
    torch.testing.assert_close(ours.loss, reference.loss, rtol=1e-5, atol=0)
    of_ours = torch.autograd.grad(ours.loss, [rows, prototypes])
    for gradient, expected in zip(of_ours, torch.autograd.grad(reference.loss, [rows, prototypes]), strict=True):
        assert relative(gradient, expected) <= 1e-5


def test_what_the_kernels_are_not_made_for_is_left_to_pytorch(monkeypatch):
    for name in ("store", "column_logsumexp", "column_sums", "cross_entropy"):
        monkeypatch.setattr(triton_passes, name, None)
    assert sinkhorn_assignments(torch.randn(5, 7, dtype=torch.float64), 0.1).dtype == torch.float64
    one = Assignments(Scores(torch.zeros(3, 5), torch.zeros(3)), torch.zeros(5), torch.ones(1))
    loss = passes.cross_entropy(torch.zeros(1, 3, 5), [one] * 3, [(0, 1, 2)], 1.0, None)
    torch.testing.assert_close(loss, torch.full((1, 3), 3 * torch.tensor(5.0).log().item()))


def test_nan_is_not_lost():
    """What stops a run that diverges."""
    logits = torch.randn(6, 70)
    logits[5, 66] = torch.nan
    target = balanced(Scores.of_logits(logits))
    loss = triton_passes.cross_entropy(torch.randn(1, 6, 70), [target], [(0,)], 1 / TAU, None)
    assert loss.isnan().all()
    whole = balanced(Scores.of_logits(torch.randn(6, 70)))
    slopes = torch.empty(1, 6, 70)
    loss = triton_passes.cross_entropy(logits[None], [whole], [(0,)], 1 / TAU, slopes)
    assert loss.isnan().nonzero().tolist() == [[0, 5]]
    assert slopes[0, 5].isnan().all()
