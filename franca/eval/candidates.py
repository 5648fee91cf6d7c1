"""What names candidates for neighbours, by fp32 products: torch or faiss, chosen here alone.

faiss searches where it is installed, knows the device and the search is large, since it selects the best while it
multiplies. torch searches everywhere else. Q queries, N rows, D features, c candidates.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from franca.eval.errors import EvalError

TILE = 2048  # queries that meet rows at once
LARGE = 1 << 28  # products from which on faiss is worth its start
MOST_ON_GPU = 2048  # rows that faiss selects there for a query
ENGINES = ("auto", "faiss", "torch")

# queries (Q, D), rows (N, D), both fp32 on one device, c <= N -> about the c largest inner products (Q, c) and their
# row numbers
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def choose_search(engine: str, device: torch.device, products: int) -> Search:
    """The search of ``engine``, of so many products in all. Raises EvalError for an engine that isn't there."""
    if engine not in ENGINES:
        raise EvalError(f"neighbour search by {engine!r} is not there: there are {', '.join(ENGINES)}")
    trouble = _trouble_of_faiss(device)
    if engine == "faiss" and trouble:
        raise EvalError(f"neighbour search by 'faiss' on {device}: {trouble}")
    if engine == "torch" or trouble or (engine == "auto" and products < LARGE):
        return with_torch
    return with_faiss if device.type == "cpu" else with_faiss_on_gpu


def _trouble_of_faiss(device: torch.device) -> str:
    """Why faiss doesn't search there, "" if it does."""
    if find_spec("faiss") is None:
        return "it is not installed; pip install 'franca[faiss]'"
    if device.type == "cpu":
        return ""
    import faiss

    return "" if faiss.get_num_gpus() > (device.index or 0) else "this faiss sees no such GPU; choose torch or auto"


def with_torch(queries: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Products in full, tile by tile."""
    tops = [(tile @ rows.T).topk(count, dim=1, sorted=False) for tile in queries.split(TILE)]
    return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])


def with_faiss(queries: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """On the CPU."""
    import faiss

    values, index = faiss.knn(queries.numpy(), rows.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(values), torch.from_numpy(index)


def with_faiss_on_gpu(queries: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """On the GPU where the tensors lie and stay; faiss multiplies in full fp32 there and joins torch's stream."""
    if count > MOST_ON_GPU:
        return with_torch(queries, rows, count)
    import faiss
    import faiss.contrib.torch_utils  # teaches knn_gpu to take tensors

    found: tuple[Tensor, Tensor] = faiss.knn_gpu(
        _resources(), queries, rows, count, metric=faiss.METRIC_INNER_PRODUCT, device=queries.device.index or 0
    )
    return found


@cache
def _resources() -> Any:
    """faiss's working memory on the process's GPU, for all searches."""
    import faiss

    return faiss.StandardGpuResources()
