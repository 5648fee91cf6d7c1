"""Stochastic depth by batch subset: reference values, and what holds for any draw."""

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from franca.models import block as block_module
from franca.models.block import Block, draw_subset

HEADS = 2


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    block = Block(width=16, num_heads=HEADS, hidden=64, ffn="swiglu", init_values=1.0, drop_path_rate=0.5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.train()


def prescribe(monkeypatch: pytest.MonkeyPatch, subsets: Iterator[Tensor]) -> None:
    monkeypatch.setattr(block_module, "draw_subset", lambda batch, rate, device: next(subsets))


@pytest.mark.parametrize("call", ["list", "tensor"])
def test_parity_with_drawn_permutations(parity_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with np.load(parity_dir / "stochastic_depth.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {name.removeprefix("weights/"): value for name, value in arrays.items() if name.startswith("weights/")}
    width = arrays["x0"].shape[-1]
    block = Block(width, HEADS, 4 * width, "swiglu", 1.0, drop_path_rate=float(arrays["sample_drop_ratio"]))
    block.load_state_dict(weights)

    in_list, drawn = int(arrays["n_perms_list_call"]), sum(name.startswith("perm/") for name in arrays)
    together = [arrays[name] for name in sorted(arrays) if re.fullmatch(r"x\d+", name)]
    inputs, first = (together, 0) if call == "list" else (together[:1], in_list)
    permutations = iter([arrays[f"perm/{number}"] for number in range(first, drawn)])
    monkeypatch.setattr(torch, "randperm", lambda batch, device: next(permutations))

    tokens, sizes = torch.cat([x.flatten(0, 1) for x in inputs]), [tuple(x.shape[:2]) for x in inputs]
    expected = torch.cat([arrays[f"{call}_y{i}"].flatten(0, 1) for i in range(len(inputs))])
    torch.testing.assert_close(block.train()(tokens, sizes), expected, atol=1e-5, rtol=0)
    if call == "tensor":
        torch.testing.assert_close(block.eval()(tokens, sizes), arrays["eval_y0"].flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("batch", "rate", "kept"), [(1, 0.9, 1), (2, 0.05, 1), (5, 0.4, 3), (10, 0.1, 9), (8, 0.99, 1)]
)
def test_subset_holds_distinct_samples(batch: int, rate: float, kept: int) -> None:
    subset = draw_subset(batch, rate, torch.device("cpu"))
    assert subset.unique().numel() == subset.numel() == kept
    assert subset.min() >= 0
    assert subset.max() < batch


def test_every_sample_is_drawn_equally_often() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[draw_subset(5, 0.4, torch.device("cpu"))] += 1
    torch.testing.assert_close(counts / 4000, torch.full((5,), 0.6), atol=0.04, rtol=0)


def test_mean_over_all_subsets_is_the_full_branch(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    nn.init.zeros_(block.ls2.gamma)  # leaves the attention branch alone, which makes the mean exact
    sizes, tokens = [(4, 3)], torch.randn(12, 16)
    outputs = []
    for subset in combinations(range(4), 2):
        prescribe(monkeypatch, iter([torch.tensor(subset)] * 2))
        outputs.append(block(tokens, sizes))
    torch.testing.assert_close(torch.stack(outputs).mean(0), block.eval()(tokens, sizes))


def test_dropped_samples_pass_unchanged(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, tokens = [(3, 4), (2, 5)], torch.randn(22, 16)
    prescribe(monkeypatch, iter([torch.tensor([2]), torch.tensor([0])] * 2))
    changed = (block(tokens, sizes) != tokens).any(dim=1)
    assert changed.tolist() == [False] * 8 + [True] * 4 + [True] * 5 + [False] * 5


def test_one_sequence_equals_size_by_size(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(12, 16), torch.randn(10, 16)
    draws = {3: torch.tensor([1]), 2: torch.tensor([1])}
    monkeypatch.setattr(block_module, "draw_subset", lambda batch, rate, device: draws[batch])
    together = block(torch.cat([first, second]), [(3, 4), (2, 5)])
    torch.testing.assert_close(together, torch.cat([block(first, [(3, 4)]), block(second, [(2, 5)])]))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_to_one_graph(block: Block, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    block.train(mode == "train")
    sizes, tokens = [(3, 4), (2, 5)], torch.randn(22, 16)
    fixed: Callable[..., Tensor] = lambda batch, rate, device: torch.arange(max(1, int(batch * (1 - rate))))  # noqa: E731
    monkeypatch.setattr(block_module, "draw_subset", fixed)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, sizes), block(tokens, sizes))
