"""The quantised index against the exact search: what it finds is right, and how much of it there is can be measured."""

import faiss
import faiss.contrib.torch_utils
import pytest
import torch

from franca.eval import quantised_index
from franca.eval.errors import EvalError
from franca.eval.neighbours import Rows, nearest
from franca.eval.quantised_index import QuantisedIndex, recall


def clusters(count: int, seed: int, width: int = 32) -> torch.Tensor:
    centres = torch.randn(60, width, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    return (
        centres[torch.randint(60, (count,), generator=random)] + 0.3 * torch.randn(count, width, generator=random)
    ).half()


@pytest.fixture(scope="module")
def memory() -> torch.Tensor:
    return clusters(6000, 0)


@pytest.mark.parametrize("cosine", [False, True])
def test_products_are_exact_and_most_neighbours_are_found(memory, cosine) -> None:
    index, queries = QuantisedIndex(memory, cosine), clusters(50, 1)
    assert (index.lists, index.code_bytes) == (64, 8)
    values, rows = index.nearest(queries, 10)
    units = [side.double() for side in (queries, memory)]
    if cosine:
        units = [side / side.norm(dim=1, keepdim=True) for side in units]
    torch.testing.assert_close(values, (units[0] @ units[1].T).gather(1, rows).float(), rtol=1e-6, atol=0)
    assert (values.diff(dim=1) <= 0).all()
    exact = nearest(queries, memory, 10, cosine=cosine)[1]
    assert recall(rows, exact) > 80
    assert recall(index.nearest(queries, 10, probes=64, candidates=6000)[1], exact) == 100.0


def test_more_lists_and_more_candidates_find_more(memory) -> None:
    index, queries = QuantisedIndex(memory, True), clusters(50, 1)
    exact = nearest(queries, memory, 10, cosine=True)[1]
    few, more, all_lists = (
        recall(index.nearest(queries, 10, probes, candidates)[1], exact)
        for probes, candidates in ((1, 10), (8, 100), (64, 1000))
    )
    assert few < more <= all_lists


def test_lists_with_too_few_rows_are_made_up_for(memory) -> None:
    index, queries = QuantisedIndex(memory, lists=512), clusters(20, 1)
    values, rows = index.nearest(queries, 200, probes=1)
    assert all(len(row.unique()) == 200 for row in rows)
    assert torch.equal(rows, nearest(queries, memory, 200)[1])
    assert values.isfinite().all()
    chosen = torch.arange(0, 20, 3)
    found = index.nearest(Rows((queries,), chosen=chosen), 200, probes=1)
    assert torch.equal(found[1], rows[chosen])


def test_the_same_seed_finds_the_same_however_rows_are_cut(memory, monkeypatch) -> None:
    queries = clusters(30, 1)
    first = QuantisedIndex(Rows((memory[:, :20], memory[:, 20:]))).nearest(queries, 5)
    monkeypatch.setattr(quantised_index, "CHUNK", 7)
    second = QuantisedIndex(memory).nearest(queries, 5)
    assert torch.equal(first[1], second[1])


def test_a_faiss_that_takes_tensors_finds_the_same(memory, monkeypatch) -> None:
    """faiss.contrib.torch_utils, which the search on a GPU imports, replaces the methods of every index."""
    index, queries = QuantisedIndex(memory), clusters(30, 1)
    replaced = [index.nearest(queries, 5, probes)[1] for probes in (1, 8)]
    monkeypatch.setattr(faiss.IndexIVFPQ, "search", faiss.IndexIVFPQ.search_numpy)
    original = [index.nearest(queries, 5, probes)[1] for probes in (1, 8)]
    assert not torch.equal(*replaced)
    assert all(torch.equal(*pair) for pair in zip(replaced, original, strict=True))


def test_recall_counts_what_was_found() -> None:
    found, exact = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9], [5, 4]])
    assert recall(found, exact) == 75.0


def test_too_few_rows_or_no_faiss_is_an_error(memory, monkeypatch) -> None:
    with pytest.raises(EvalError, match="of 100 rows"):
        QuantisedIndex(memory[:100])
    monkeypatch.setattr(quantised_index, "find_spec", lambda name: None)
    with pytest.raises(EvalError, match=r"pip install 'franca\[faiss\]'"):
        QuantisedIndex(memory)
