"""Sinkhorn in the log domain: equal to the reference, balanced, and finite whatever the logits."""

import pytest
import torch
from torch import Tensor

from franca.objective import sinkhorn_assignments
from franca.objective.assignments import Scores
from franca.objective.sinkhorn import balance


def float64_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """The definition: scale columns, then rows, of the whole matrix, in float64."""
    scores = logits.double() / temperature
    for _ in range(iterations):
        scores = scores - scores.logsumexp(dim=0, keepdim=True)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp()


@pytest.mark.parametrize("iterations", [1, 3])
def test_reference_class_tokens(losses, levels, iterations):
    temperature = float(losses["teacher_temp"])
    expected = levels(f"dino_sinkhorn/out_iter{iterations}")
    for logits, reference in zip(levels("dino_sinkhorn/in"), expected, strict=True):
        torch.testing.assert_close(sinkhorn_assignments(logits, temperature, iterations), reference, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("iterations", "name"), [(1, "out_iter1"), (3, "out")])
def test_reference_patches_without_padding_rows(losses, levels, iterations, name):
    temperature, real = float(losses["teacher_temp"]), int(losses["ibot/n_masked_patches"])
    for logits, reference in zip(levels("ibot_sinkhorn/in"), levels(f"ibot_sinkhorn/{name}"), strict=True):
        valid = torch.arange(len(logits)) < real
        ours = sinkhorn_assignments(logits, temperature, iterations, valid)
        torch.testing.assert_close(ours[:real], reference, atol=2e-6, rtol=0)
        assert not ours[real:].any()


def test_reference_patches_where_padding_rows_take_part(losses, levels):
    """The original's literal behaviour is the same function without a mask."""
    temperature = float(losses["teacher_temp"])
    for logits, reference in zip(
        levels("ibot_sinkhorn/in"), levels("ibot_sinkhorn/out_with_padding_rows"), strict=True
    ):
        torch.testing.assert_close(sinkhorn_assignments(logits, temperature), reference, atol=2e-6, rtol=0)


@pytest.mark.parametrize("head", ["dino", "ibot"])
def test_reference_of_two_ranks_is_that_of_the_concatenated_rows(losses, levels, head):
    n_ranks = len({name.split("/")[3] for name in losses if name.startswith(f"two_rank/{head}/in/")})
    ranks = [levels(f"two_rank/{head}/in/rank{rank}") for rank in range(n_ranks)]
    outputs = [levels(f"two_rank/{head}/out/rank{rank}") for rank in range(n_ranks)]
    for logits, reference in zip(zip(*ranks, strict=True), zip(*outputs, strict=True), strict=True):
        ours = sinkhorn_assignments(torch.cat(logits), float(losses["teacher_temp"]))
        torch.testing.assert_close(ours, torch.cat(reference), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 2e-6), (1000.0, 2e-3)])
def test_extreme_logits_are_finite_and_right(scale, tolerance):
    """±1000 at temperature 0.04: exp(25000) has no fp32; one unit in the last place of 25000 is 2e-3."""
    torch.manual_seed(0)
    logits = scale * torch.rand(48, 24).mul(2).sub(1)
    logits[:6], logits[6:9], logits[:, 3] = scale, -scale, -scale
    ours = sinkhorn_assignments(logits, 0.04)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(48), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, float64_sinkhorn(logits, 0.04, 3).float(), atol=tolerance, rtol=0)


def test_a_prototype_that_no_row_is_near_still_gets_its_share():
    logits = torch.zeros(32, 8)
    logits[:, 5] = -1000.0
    torch.testing.assert_close(sinkhorn_assignments(logits, 0.04, 1), torch.full((32, 8), 1 / 8), atol=1e-3, rtol=0)


def test_rounds_converge_to_equal_columns():
    torch.manual_seed(0)
    ours = sinkhorn_assignments(torch.randn(60, 12), 0.5, iterations=100)
    torch.testing.assert_close(ours.sum(dim=0), torch.full((12,), 60 / 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(60))


def test_a_constant_added_to_a_prototype_changes_nothing():
    torch.manual_seed(0)
    logits, offsets = torch.randn(20, 8), torch.randn(8)
    torch.testing.assert_close(
        sinkhorn_assignments(logits + offsets, 0.1), sinkhorn_assignments(logits, 0.1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("content", [None, 1e30, torch.inf, -torch.inf, torch.nan])
def test_rows_that_are_not_valid_take_no_part_wherever_they_stand(content):
    torch.manual_seed(0)
    logits, valid = torch.randn(30, 8), torch.rand(30) < 0.6
    if content is not None:
        logits[~valid] = content
    ours = sinkhorn_assignments(logits, 0.06, valid=valid)
    torch.testing.assert_close(ours[valid], sinkhorn_assignments(logits[valid], 0.06))
    assert not ours[~valid].any()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_valid_row_gives_zeros(rows):
    ours = sinkhorn_assignments(torch.randn(rows, 4), 0.04, valid=torch.zeros(rows, dtype=torch.bool))
    assert ours.shape == (rows, 4)
    assert (ours == 0).all()


def test_problems_solved_together_share_their_reductions():
    """One vector for all; after the first round plain sums do, where they are offered."""
    torch.manual_seed(0)
    problems = [torch.randn(12, 4), torch.randn(12, 8), torch.randn(20, 6)]
    valid = [None, None, torch.arange(20) < 13]
    scores = [Scores.of_logits(logits, rows) for logits, rows in zip(problems, valid, strict=True)]
    calls: list[tuple[str, torch.Size]] = []

    def note(name: str):
        return lambda masses: calls.append((name, masses.shape)) or masses

    for arguments, expected in (
        ((note("log"),), ["log", "log", "log"]),
        ((note("log"), note("sum")), ["log", "sum", "sum"]),
    ):
        calls.clear()
        together = balance(scores, 0.05, 3, *arguments)
        assert calls == [(name, (4 + 8 + 6,)) for name in expected]
        for ours, logits, rows in zip(together, problems, valid, strict=True):
            torch.testing.assert_close(ours.dense(), sinkhorn_assignments(logits, 0.05, 3, rows), atol=1e-6, rtol=0)


def test_a_rank_counts_the_rows_of_the_others():
    """With column masses of the other ranks given, this rank's part of the whole comes out."""
    torch.manual_seed(0)
    here, elsewhere = torch.randn(6, 8), torch.randn(10, 8)
    others = (elsewhere / 0.1).logsumexp(dim=0)
    ours = sinkhorn_assignments(here, 0.1, 1, logsumexp_over_ranks=lambda mass: torch.logaddexp(mass, others))
    torch.testing.assert_close(ours, sinkhorn_assignments(torch.cat([here, elsewhere]), 0.1, 1)[:6])


def test_temperature_as_tensor_and_no_gradient():
    logits = torch.randn(10, 6, requires_grad=True)
    ours = sinkhorn_assignments(logits, torch.tensor(0.05))
    torch.testing.assert_close(ours, sinkhorn_assignments(logits, 0.05), atol=2e-6, rtol=0)
    assert not ours.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_logits_is_worked_on_in_fp32(dtype):
    logits = (10 * torch.randn(10, 6)).to(dtype)
    ours = sinkhorn_assignments(logits, 0.05)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, sinkhorn_assignments(logits.float(), 0.05))


def test_double_precision_of_logits_is_kept():
    logits = 10 * torch.randn(10, 6, dtype=torch.float64)
    ours = sinkhorn_assignments(logits, 0.05)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(10, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(ours.float(), sinkhorn_assignments(logits.float(), 0.05), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 0.04, "iterations": 0}, "iterations is 0"),
        ({"temperature": 0.04, "valid": torch.ones(3, dtype=torch.bool)}, r"shape \(3,\)"),
        ({"temperature": 0.04, "valid": torch.ones(4)}, "float32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn_assignments(torch.randn(4, 2), **arguments)


def test_logits_that_are_no_matrix_are_named():
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3, 4\)"):
        sinkhorn_assignments(torch.randn(2, 3, 4), 0.04)
