"""Neighbour search against plain sorting; neither engine nor block sizes may change a result, ties included."""

import pytest
import torch

from franca.eval import candidates, neighbours
from franca.eval.errors import EvalError
from franca.eval.neighbours import Rows, nearest

ENGINES = ("faiss", "torch")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop turns more than once."""
    monkeypatch.setattr(candidates, "TILE", 7)
    for name, value in {"TILE": 7, "HELD": 16, "SPARE": 2, "ELEMENTS": 500}.items():
        monkeypatch.setattr(neighbours, name, value)


def random_rows(count: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_sorting(queries, memory, k):
    """All products in fp64, sorted by (-product, row number) with Python's own sort."""
    products = (queries.double() @ memory.double().T).float()
    index = [sorted(range(len(memory)), key=lambda row: (-line[row], row))[:k] for line in products.tolist()]
    return products.gather(1, torch.tensor(index)), torch.tensor(index)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("k", "chunk"), [(1, 13), (5, 13), (5, 1000), (60, 13), (90, 64)])
def test_equals_sorting_all_products(engine, dtype, k, chunk) -> None:
    queries, memory = random_rows(40, 12, 0, dtype), random_rows(90, 12, 1, dtype)
    values, index = nearest(queries, memory, k, chunk=chunk, engine=engine)
    wanted_values, wanted = by_sorting(queries, memory, k)
    assert torch.equal(index, wanted)
    assert torch.equal(values, wanted_values)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk", [8, 31, 200])
def test_equal_products_come_by_row_number(engine, chunk) -> None:
    """Each row stands there twenty times, more often than there are candidates."""
    memory = random_rows(5, 6, 2).repeat(20, 1)[torch.randperm(100, generator=torch.Generator().manual_seed(3))]
    queries = random_rows(20, 6, 4)
    for k in (1, 3, 25, 100):
        assert torch.equal(
            nearest(queries, memory, k, chunk=chunk, engine=engine)[1], by_sorting(queries, memory, k)[1]
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_memory_of_one_value_gives_its_first_rows(engine) -> None:
    values, index = nearest(torch.ones(20, 4), torch.full((50, 4), 0.5), 3, chunk=9, engine=engine)
    assert index.tolist() == [[0, 1, 2]] * 20
    assert values.unique().tolist() == [2.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_differences_below_fp32_rounding_are_decided(engine) -> None:
    """Rows that differ in the last bits: fp32 sums order them by their rounding, and that depends on the blocks."""
    base, noise = random_rows(1, 256, 5), random_rows(60, 256, 6) * 1e-7
    memory, queries = base + noise, base.expand(18, -1) + 1e-3 * random_rows(18, 256, 7)
    for chunk in (7, 60):
        found = nearest(queries, memory, 5, chunk=chunk, engine=engine)
        assert torch.equal(found[1], by_sorting(queries, memory, 5)[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_cosine_ignores_lengths(engine) -> None:
    queries, memory = random_rows(20, 8, 8), random_rows(50, 8, 9)
    lengths = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    values, index = nearest(3 * queries, lengths * memory, 4, cosine=True, engine=engine)
    units = [side.double() / side.double().norm(dim=1, keepdim=True) for side in (queries, memory)]
    wanted = (units[0] @ units[1].T).topk(4, dim=1)
    assert torch.equal(index, wanted.indices)
    torch.testing.assert_close(values, wanted.values.float(), rtol=1e-6, atol=0)


def test_parts_side_by_side_are_one_row() -> None:
    queries, memory = random_rows(20, 8, 10), random_rows(50, 8, 11)
    joined = [Rows((side[:, :3], side[:, 3:].half().float())) for side in (queries, memory)]
    whole = [torch.cat(side.parts, dim=1) for side in joined]
    for cosine in (False, True):
        apart, together = nearest(*joined, 4, cosine=cosine), nearest(*whole, 4, cosine=cosine)
        assert torch.equal(apart[1], together[1])
        assert torch.equal(apart[0], together[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_do_not_count_are_as_if_they_were_not_there(engine) -> None:
    queries, memory = random_rows(20, 8, 14), random_rows(90, 8, 15)
    asked, kept = torch.arange(0, 20, 3), torch.randperm(90, generator=torch.Generator().manual_seed(0))[:50]
    chosen = Rows((queries,), chosen=asked), Rows((memory,), chosen=kept)
    found = nearest(*chosen, 4, cosine=True, chunk=13, engine=engine)
    expected = nearest(queries[asked], memory[kept], 4, cosine=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_memory_mapped_rows_are_searched_where_they_lie(tmp_path) -> None:
    memory = random_rows(50, 8, 12, torch.float16)
    memory.numpy().tofile(tmp_path / "rows")
    mapped = torch.from_file(str(tmp_path / "rows"), shared=False, size=400, dtype=torch.float16).view(50, 8)
    queries = random_rows(20, 4, 13)
    found, wanted = (nearest(queries, rows[:, :4], 4, chunk=9) for rows in (mapped, memory))
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_surrounding_autocast_changes_nothing() -> None:
    queries, memory = random_rows(20, 64, 16), random_rows(50, 64, 17)
    plain = nearest(queries, memory, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(queries, memory, 5)[1], plain[1])


@pytest.mark.parametrize(("k", "width"), [(0, 4), (11, 4), (2, 5)])
def test_impossible_searches_are_refused(k, width) -> None:
    with pytest.raises(EvalError, match="k lie between 1 and 10"):
        nearest(torch.ones(3, width), torch.ones(10, 4), k)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("engine", ENGINES)
def test_features_that_are_not_finite_are_named(value, engine) -> None:
    memory = torch.ones(10, 4)
    memory[3, 2] = value
    with pytest.raises(EvalError, match="NaN or infinity"):
        nearest(torch.ones(3, 4), memory, 2, engine=engine)


def unit_rows(kind: str, count: int, width: int) -> torch.Tensor:
    """Rows of length 1 in every direction, near one direction, or of positive entries (sums that only grow)."""
    rows = random_rows(count, width, 18)
    if kind == "anisotropic":
        rows = rows * 0.1 + random_rows(1, width, 19)
    return torch.nn.functional.normalize(rows.abs() if kind == "positive" else rows)


@pytest.mark.parametrize("width", [12, 384, 1024])
@pytest.mark.parametrize("kind", ["random", "anisotropic", "positive"])
def test_fp32_products_err_by_less_than_the_bound(kind, width) -> None:
    """Both as the engines sum and one addition after another, which rounds the most."""
    rows = unit_rows(kind, 96, width)
    exact = rows.double() @ rows.double().T
    one_by_one = torch.zeros(96, 96)
    for column in rows.T:
        one_by_one += column[:, None] * column
    products = [search(rows, rows, 96) for search in (candidates.with_torch, candidates.with_faiss)]
    found = [one_by_one, *(torch.empty(96, 96).scatter_(1, index, values) for values, index in products)]
    for each in found:
        assert float((each.double() - exact).abs().max()) < neighbours.rounding_of_products(width) / 2


def test_only_queries_that_more_candidates_leave_open_meet_all_rows(monkeypatch) -> None:
    """Of rows near one direction some tie within fp32 rounding at the edge of the candidates, few beyond four times."""
    memory, compared = unit_rows("anisotropic", 4000, 384), []
    queries, among_all = unit_rows("anisotropic", 4040, 384)[4000:], neighbours._among_all
    monkeypatch.setattr(neighbours, "_among_all", lambda *given: compared.append(len(given[1])) or among_all(*given))
    wanted = by_sorting(queries, memory, 10)
    assert torch.equal(nearest(queries, memory, 10, chunk=999)[1], wanted[1])
    assert sum(compared) == 0
    monkeypatch.setattr(neighbours, "rounding_of_products", lambda width: 1.0)  # now fp32 decides nothing
    assert torch.equal(nearest(queries, memory, 10, chunk=999)[1], wanted[1])
    assert sum(compared) > 0


def test_queries_left_open_are_compared_where_the_search_runs(monkeypatch) -> None:
    places = []
    monkeypatch.setattr(neighbours, "place_of_doubles", lambda device: places.append(device) or torch.device("cpu"))
    device = torch.device("cpu", 0)  # another name than that of the rows' own
    nearest(torch.ones(3, 4), torch.ones(40, 4), 2, device)
    assert set(places) == {device}
