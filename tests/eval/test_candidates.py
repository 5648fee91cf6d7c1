"""Which engine names candidates; the GPU's part of faiss by a stand-in, since a GPU is not everywhere."""

import inspect

import faiss
import faiss.contrib.torch_utils as torch_utils
import pytest
import torch

from franca.eval import candidates, neighbours
from franca.eval.candidates import LARGE, choose_search, with_faiss, with_faiss_on_gpu, with_torch
from franca.eval.errors import EvalError
from franca.eval.neighbours import nearest

CPU, OTHER = torch.device("cpu"), torch.device("meta", 1)  # meta stands for any accelerator


def test_faiss_searches_on_the_cpu_where_it_is_installed_and_the_search_is_large(monkeypatch) -> None:
    assert choose_search("auto", CPU, LARGE) is with_faiss
    assert choose_search("auto", CPU, LARGE - 1) is with_torch
    assert choose_search("torch", CPU, LARGE) is with_torch
    assert choose_search("faiss", CPU, 1) is with_faiss
    monkeypatch.setattr(candidates, "find_spec", lambda name: None)
    assert choose_search("auto", CPU, LARGE) is with_torch
    with pytest.raises(EvalError, match=r"pip install 'franca\[faiss\]'"):
        choose_search("faiss", CPU, 1)
    with pytest.raises(EvalError, match="there are auto, faiss, torch"):
        choose_search("annoy", CPU, 1)


def test_faiss_searches_on_a_gpu_that_it_sees(monkeypatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    assert choose_search("auto", OTHER, LARGE) is with_faiss_on_gpu
    assert choose_search("auto", OTHER, LARGE - 1) is with_torch
    assert choose_search("torch", OTHER, LARGE) is with_torch
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)  # not the second one
    assert choose_search("auto", OTHER, LARGE) is with_torch
    with pytest.raises(EvalError, match="sees no such GPU"):
        choose_search("faiss", OTHER, 1)


class Gpu:
    """faiss's GPU functions, on the CPU: called as faiss's own can be, with tensors that it takes without copying."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called = 0
        monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
        monkeypatch.setattr(faiss, "knn_gpu", self.knn, raising=False)
        candidates._resources.cache_clear()

    def knn(self, *given, **named):
        call = inspect.signature(torch_utils.torch_replacement_knn_gpu).bind(*given, **named).arguments
        self.called += 1
        for rows in (call["xq"], call["xb"]):
            assert rows.dtype == torch.float32
            assert rows.is_contiguous()
        assert (call["res"], call["device"], call["metric"]) == ("resources", 0, faiss.METRIC_INNER_PRODUCT)
        return (call["xq"] @ call["xb"].T).topk(call["k"], dim=1)


def test_a_gpu_finds_what_torch_finds(monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    memory, queries = (torch.randn(rows, 24, generator=random).half() for rows in (300, 40))
    memory[150:] = memory[:150]  # every product twice
    gpu = Gpu(monkeypatch)
    expected = nearest(queries[:, :20], memory[:, :20], 9, cosine=True, chunk=64, engine="torch")
    monkeypatch.setattr(neighbours, "choose_search", lambda *_: with_faiss_on_gpu)
    found = nearest(queries[:, :20], memory[:, :20], 9, cosine=True, chunk=64)
    assert gpu.called == 5
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_more_candidates_than_faiss_selects_on_a_gpu_are_torchs(monkeypatch) -> None:
    monkeypatch.setattr(candidates, "MOST_ON_GPU", 3)
    gpu, rows = Gpu(monkeypatch), torch.eye(6)
    assert with_faiss_on_gpu(rows, rows, 4)[1].shape == (6, 4)
    assert gpu.called == 0
    assert with_faiss_on_gpu(rows, rows, 1)[1].flatten().tolist() == list(range(6))
    assert gpu.called == 1
