"""Attention over the crops of a step: PyTorch's scaled dot product against xFormers, forward and backward, in turns.

    python scripts/benchmark_attention.py --config configs/pretrain/vitb14_in21k.yaml [key=value …] [--device auto]

Shapes are those of one block of the student: the queries, keys and values of all crops in one sequence, as the linear
layer before gives them, each crop attending to itself. Ways: *by size*, one call for global and one for local crops, as
the networks do; xFormers by size; xFormers in one call with a block-diagonal mask. Errors are against plain products in
fp32. Without xFormers, or where it has no kernel, PyTorch's ways alone are shown.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from franca.config import ConfigError
from franca.devices import choose_device, choose_precision, compute_in
from franca.flops import kept_crops
from franca.models import BACKBONES
from franca.models.attention import Sizes, join, split_by_size
from franca.models.block import Block
from franca.train.config import TrainConfig, load_config
from measuring.facts import aligned, facts
from measuring.timing import Took, in_turns, ratios, spread, timed

Attend = Callable[[Tensor], Tensor]  # (T, 3, heads, width) -> (T, heads * width)
BY_SIZE = "PyTorch, by size"


def shapes(config: TrainConfig) -> tuple[list[tuple[int, int]], int, int]:
    """Crops and tokens of each size that a block attends to, heads, and features of a head."""
    with torch.device("meta"):
        backbone = BACKBONES[config.model.arch](**config.model.backbone_options())
    crops, images = config.data.crops, config.data.batch_size
    extra = 1 + backbone.num_register_tokens
    wanted = [(2 * images, crops.global_size), (crops.local_count * images, crops.local_size)]
    sizes = [(count, extra + (side // config.model.patch_size) ** 2) for count, side in wanted if count]
    block = backbone.blocks[0]
    assert isinstance(block, Block)
    heads = block.attn.num_heads
    return kept_crops(sizes, config.model.drop_path_rate), heads, backbone.embed_dim // heads


def by_size(sizes: Sizes, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Attend:
    """One call per size; attend: three of (B, heads, N, width) -> the same."""

    def way(qkv: Tensor) -> Tensor:
        mixed = []
        for piece in split_by_size(qkv.flatten(1), sizes):
            query, key, value = piece.unflatten(2, qkv.shape[1:]).permute(2, 0, 3, 1, 4)
            mixed.append(attend(query, key, value).transpose(1, 2).flatten(2))
        return join(mixed)

    return way


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As the formula reads."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ value


def xformers_ways(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Attend]]:
    """Both of xFormers' ways. Raises ImportError without it."""
    operations, biases = import_module("xformers.ops"), import_module("xformers.ops.fmha.attn_bias")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        swapped = (tensor.transpose(1, 2) for tensor in (query, key, value))  # it wants (B, N, heads, width)
        return operations.memory_efficient_attention(*swapped).transpose(1, 2)

    lengths = [length for count, length in sizes for _ in range(count)]
    mask = biases.BlockDiagonalMask.from_seqlens(lengths, device=device)

    def at_once(qkv: Tensor) -> Tensor:
        mixed = operations.memory_efficient_attention(*qkv[None].unbind(2), attn_bias=mask)
        return mixed.flatten(2)[0]

    yield "xFormers, by size", by_size(sizes, attend)
    yield "xFormers, one call", at_once


def ways(sizes: Sizes, device: torch.device) -> tuple[dict[str, Attend], str]:
    """What can be compared here, and why xFormers can't, if so."""
    found = {BY_SIZE: by_size(sizes, F.scaled_dot_product_attention), "plain products": by_size(sizes, plain)}
    if device.type == "cpu":
        return found, "xFormers was left out: it needs an accelerator (--device)"
    try:
        found |= dict(xformers_ways(sizes, device))
    except ImportError as error:
        return found, f"xFormers was left out: {error}; pip install 'franca[xformers]' brings it"
    return found, ""


def both(way: Attend, qkv: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: the result, and the gradient of what went in."""
    given = qkv.detach().requires_grad_()
    with compute_in(qkv.dtype if qkv.dtype == torch.bfloat16 else None, qkv.device):  # chooses kernels as in training
        result = way(given)
    (gradient,) = torch.autograd.grad(result, given, upstream.to(result.dtype))
    return result.detach(), gradient


def error(found: Tensor, right: Tensor) -> float:
    """Relative, over all entries."""
    return float((found.float() - right).norm() / right.norm())


def compare(config: TrainConfig, device: torch.device, blocks: int, calls: int) -> tuple[dict[str, Any], str]:
    """Numbers and page."""
    sizes, heads, width = shapes(config)
    kind = choose_precision(config.precision, device) or torch.float32
    tokens = sum(count * length for count, length in sizes)
    torch.manual_seed(config.seed)
    qkv = torch.randn(tokens, 3, heads, width, device=device)
    upstream = torch.randn(tokens, heads * width, device=device)
    right = both(by_size(sizes, plain), qkv.to(kind).float(), upstream)
    qkv, upstream = qkv.to(kind), upstream.to(kind)
    usable, note = ways(sizes, device)
    errors = {}
    for name, way in list(usable.items()):
        try:
            errors[name] = [error(*pair) for pair in zip(both(way, qkv, upstream), right, strict=True)]
        except NotImplementedError as refusal:  # xFormers has no kernel for this device
            note = f"{name} was left out: {str(refusal).strip().splitlines()[0]}"
            del usable[name]

    def block(way: Attend) -> Took:
        return timed(lambda: [both(way, qkv, upstream) for _ in range(calls)], device)

    took = in_turns([lambda way=way: block(way) for way in usable.values()], blocks)  # type: ignore[misc]
    times = {name: [1e3 * t.on(device) / calls for t in each] for name, each in zip(usable, took, strict=True)}
    quotients = {name: ratios(values, times[BY_SIZE]) for name, values in times.items()}
    rows = [["", "ms", "ratio", "error", "error of gradient"]]
    for name, values in times.items():
        rows.append([name, spread(values), spread(quotients[name], 2), *(f"{each:.1e}" for each in errors[name])])
    crops = " + ".join(f"{count} x {length}" for count, length in sizes)
    where = facts(device, choose_precision(config.precision, device))
    page = f"crops x tokens: {crops}; {heads} heads of {width}\n" + ", ".join(
        value if name in ("device", "precision") else f"{name} {value}" for name, value in where.items()
    )
    page += f"\n\n{aligned(rows)}\nmedian (least-largest) of {blocks} rounds of {calls}, forward and backward"
    numbers = {"facts": where, "sizes": sizes, "ms": times, "ratio": quotients, "error": errors, "note": note}
    return numbers, f"{page}\n{note}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Print a table; returns the exit status."""
    about, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="as for python -m franca.train")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=7, help="rounds, the ways in turns (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="of each way in a round (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every number as JSON")
    options = parser.parse_intermixed_args(arguments)
    try:
        config, device = load_config(options.config, options.overrides), choose_device(options.device)
        numbers, page = compare(config, device, options.blocks, options.calls)
        print(page)
        if options.output:
            options.output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    except (ConfigError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
