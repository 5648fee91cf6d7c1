"""Attention several ways: the same result, and xFormers called with the layout and the mask that it wants."""

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import benchmark_attention as benchmark
from franca.flops import kept_crops
from franca.train.config import TrainConfig

SIZES = [(3, 5), (4, 2)]  # crops, tokens
CPU = torch.device("cpu")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """xFormers' functions by their documented interface: (B, N, heads, width), sequences one after the other."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_bias: Sequence[int] | None = None) -> Tensor:
        pieces = [tensor.split(attn_bias or [tensor.shape[1]], dim=1) for tensor in (query, key, value)]
        mixed = [
            F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts)).transpose(1, 2)
            for parts in zip(*pieces, strict=True)
        ]
        return torch.cat(mixed, dim=1)

    def from_seqlens(lengths: Sequence[int], device: torch.device) -> Sequence[int]:
        assert device == CPU
        return lengths

    modules: dict[str, Any] = {name: ModuleType(name) for name in ("xformers", "xformers.ops", "xformers.ops.fmha")}
    modules["xformers.ops.fmha.attn_bias"] = ModuleType("attn_bias")
    modules["xformers.ops"].memory_efficient_attention = attend
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalMask = SimpleNamespace(from_seqlens=from_seqlens)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_all_ways_give_the_same_result_and_gradient(stand_in: None) -> None:
    tokens = sum(count * length for count, length in SIZES)
    qkv, upstream = torch.randn(tokens, 3, 2, 4), torch.randn(tokens, 8)
    right = benchmark.both(benchmark.by_size(SIZES, benchmark.plain), qkv, upstream)
    ways = {**benchmark.ways(SIZES, CPU)[0], **dict(benchmark.xformers_ways(SIZES, CPU))}
    assert len(ways) == 4
    for name, way in ways.items():
        for found, wanted in zip(benchmark.both(way, qkv, upstream), right, strict=True):
            assert benchmark.error(found, wanted) < 1e-5, name


def test_crops_attend_to_themselves_alone() -> None:
    attend = benchmark.ways(SIZES, CPU)[0][benchmark.BY_SIZE]
    qkv = torch.randn(23, 3, 2, 4)
    changed = qkv.clone()
    changed[:5] += 1  # the first crop
    same = (attend(qkv) == attend(changed)).all(dim=1)
    assert same.tolist() == [False] * 5 + [True] * 18


def test_shapes_are_those_of_a_block_of_the_student(config: TrainConfig) -> None:
    config.model.drop_path_rate = 0.4
    sizes, heads, width = benchmark.shapes(config)
    assert sizes == kept_crops([(2 * 4, 1 + 16), (2 * 4, 1 + 4)], 0.4)
    assert (heads, heads * width) == (2, 32)


def test_without_xformers_it_says_so(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    found, note = benchmark.ways(SIZES, torch.device("meta"))  # stands for an accelerator
    assert list(found) == [benchmark.BY_SIZE, "plain products"]
    assert "franca[xformers]" in note


def test_the_page_has_a_line_for_every_way(config: TrainConfig) -> None:
    numbers, page = benchmark.compare(config, CPU, blocks=2, calls=1)
    assert "PyTorch, by size" in page
    assert "needs an accelerator" in page
    assert all(quotient == 1.0 for quotient in numbers["ratio"][benchmark.BY_SIZE])
    assert max(max(errors) for errors in numbers["error"].values()) < 1e-5  # fp32
