"""Both ways to compute what the prototypes see give the same values and gradients, on every kind of head."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca.models import MatryoshkaHead, matryoshka_head
from franca.models.level_rows import rows_at_once, rows_by_level

D, OUT = 32, 12
every_head = pytest.mark.parametrize(
    "options",
    [
        {"layers": 1},
        {"layers": 2},
        {"layers": 3},
        {"layers": 3, "normalize_bottleneck": False},
        {"layers": 4, "nesting": (1 / 4, 1 / 2)},  # nobody reads the feature's second half
        {"layers": 3, "nesting": (1,)},
    ],
)


def head_of(options: dict[str, Any], kind: torch.dtype = torch.float64) -> MatryoshkaHead:
    torch.manual_seed(0)
    head = MatryoshkaHead(D, 64, hidden_dim=24, bottleneck_dim=OUT, **options)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head.to(kind)


def values_and_gradients(head: MatryoshkaHead, at_once: bool) -> dict[str, Tensor]:
    """Of a fixed sum of all rows, for the features and for every parameter but the prototypes."""
    kind = next(head.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(7, D, generator=generator, dtype=torch.float64).to(kind).requires_grad_()
    form = rows_at_once if at_once else rows_by_level
    rows = torch.stack(list(form(features, head.matryoshka_projections, head.mlps)))
    weights = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(kind)
    learning = {name: p for name, p in head.named_parameters() if not name.startswith("last_layers")}
    asked = {"features": features} | learning
    gradients = torch.autograd.grad((rows * weights).sum(), list(asked.values()))
    return {"rows": rows.detach()} | dict(zip(asked, gradients, strict=True))


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the largest number of each tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - e).abs().max() / e.abs().max()) for n, e in expected.items())


@every_head
def test_all_levels_at_once_equal_one_after_the_other(options: dict[str, Any]) -> None:
    head = head_of(options)
    assert largest_error(values_and_gradients(head, True), values_and_gradients(head, False)) < 1e-12


@every_head
def test_single_precision_errs_by_its_rounding(options: dict[str, Any]) -> None:
    expected = values_and_gradients(head_of(options), False)
    assert largest_error(values_and_gradients(head_of(options, torch.float32), True), expected) < 1e-5


@pytest.mark.parametrize("nesting", [(1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), (1 / 4, 1 / 2)])
def test_a_level_sees_its_slice_alone(nesting: Sequence[float]) -> None:
    head = head_of({"nesting": nesting})
    features = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    for width, rows in zip(
        head.widths, rows_at_once(features, head.matryoshka_projections, head.mlps).unbind(), strict=True
    ):
        (gradient,) = torch.autograd.grad(rows.square().sum(), features, retain_graph=True)
        assert gradient[:, :width].abs().sum(0).min() > 0
        assert not gradient[:, width:].any()


class Elsewhere(Tensor):
    """Computes as any tensor does, and says that it is on an accelerator."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("xpu")


@every_head
def test_a_head_that_is_not_on_the_cpu_computes_at_once(options: dict[str, Any], monkeypatch: Any) -> None:
    head, features = head_of(options), torch.randn(7, D, dtype=torch.float64)
    expected = head(features)
    monkeypatch.setattr(matryoshka_head, "rows_by_level", lambda *_: pytest.fail("level by level"))
    for found, level in zip(head(features.as_subclass(Elsewhere)), expected, strict=True):
        torch.testing.assert_close(found.as_subclass(Tensor), level, rtol=0, atol=1e-12)
