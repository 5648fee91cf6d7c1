"""Which parameter follows which rule, and what a step changes."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from franca.models import MatryoshkaHead, VisionTransformer
from franca.objective import Encoder
from franca.train.config import TrainConfig
from franca.train.optimizer import (
    OptimizerConfig,
    ParameterRule,
    apply_schedules,
    build_optimizer,
    clip_gradients,
    step_if_finite,
)
from franca.train.quantities import PARTS
from franca.train.schedules import StepValues
from franca.train.trainer import Trainer


def small_encoder(depth: int = 2, levels: int = 5) -> Encoder:
    backbone = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=32, depth=depth, num_heads=2, num_register_tokens=4
    )
    nesting = [2.0**-level for level in reversed(range(levels))]
    heads = [MatryoshkaHead(32, 32, nesting, hidden_dim=8, bottleneck_dim=4) for _ in range(2)]
    return Encoder(backbone, *heads)


def rules_by_name(encoder: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, ParameterRule]:
    """Parameter name -> the rule of its group; fails if a parameter is in no group, or in two."""
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    rules = [(names[id(p)], group["rule"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(rules) == len(names) == len(dict(rules))
    return dict(rules)


def test_rules_are_the_originals(parity_dir: Path) -> None:
    reference = json.loads((parity_dir / "schedules.json").read_text())
    (key,) = [key for key in reference if key.startswith("param_groups_")]
    found = re.fullmatch(r"param_groups_layerwise_decay_([\d.]+)_patch_embed_([\d.]+)", key)
    assert found
    config = OptimizerConfig(layerwise_decay=float(found[1]), patch_embed_lr_mult=float(found[2]))
    unchunked = [name for name in reference[key] if name.endswith("_chunks0")]
    assert unchunked
    for name in unchunked:
        depth = int(re.findall(r"depth(\d+)", name)[0])
        levels = len({k.split(".")[1] for k in reference[key]["mrl_head"] if k.startswith("last_layers.")})
        encoder = small_encoder(depth, levels)
        rules = rules_by_name(encoder, build_optimizer(encoder, depth, config))
        expected = {f"backbone.{parameter}": rule for parameter, rule in reference[key][name].items()}
        expected |= {f"{h}.{p}": rule for h in PARTS[1:] for p, rule in reference[key]["mrl_head"].items()}
        assert rules.keys() == expected.keys()
        for parameter, (lr, weight_decay, is_last_layer) in expected.items():
            rule = rules[parameter]
            assert rule.lr_multiplier == pytest.approx(lr, rel=1e-12), parameter
            assert (rule.weight_decay_multiplier, rule.is_last_layer) == (weight_decay, is_last_layer), parameter


def test_schedules_reach_every_group_by_its_rule() -> None:
    encoder = small_encoder()
    config = OptimizerConfig(layerwise_decay=0.5, patch_embed_lr_mult=0.1)
    optimizer = build_optimizer(encoder, 2, config)
    apply_schedules(optimizer, StepValues(1.0, 0.0, 0.3, 0.9, 0.04))
    groups = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    by_name = {name: groups[id(parameter)] for name, parameter in encoder.named_parameters()}
    assert by_name["backbone.patch_embed.proj.weight"] == pytest.approx((0.1 * 0.5**3, 0.3))
    assert by_name["backbone.blocks.1.attn.qkv.bias"] == (0.5, 0.0)
    assert by_name["backbone.norm.weight"] == (1.0, 0.0)
    assert by_name["dino_head.mlps.0.0.weight"] == (1.0, 0.3)
    assert by_name["ibot_head.last_layers.1.weight_v"] == (0.0, 0.3)


def random_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of parameters, moments and step counters."""
    states = [optimizer.state[p] for p in module.parameters()]
    moments = [state[name] for state in states for name in sorted(state)]
    return [tensor.detach().clone() for tensor in (*module.parameters(), *moments)]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    encoder = small_encoder()
    optimizer = build_optimizer(encoder, 2, OptimizerConfig())
    for seed in range(2):
        random_gradients(encoder, seed)
        step_if_finite(optimizer, torch.tensor(True))
    before = everything(encoder, optimizer)
    random_gradients(encoder, 2)
    next(encoder.parameters()).grad.view(-1)[0] = torch.nan
    step_if_finite(optimizer, torch.tensor(False))
    assert all(map(torch.equal, before, everything(encoder, optimizer)))


def test_a_finite_step_is_a_plain_adamw_step_also_after_a_skipped_one() -> None:
    encoder = small_encoder()
    twin = copy.deepcopy(encoder)
    optimizer = build_optimizer(encoder, 2, OptimizerConfig(weight_decay=0.1))
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-3, 0.1
    for seed, finite in enumerate([True, False, True, True]):
        random_gradients(encoder, seed)
        random_gradients(twin, seed)
        step_if_finite(optimizer, torch.tensor(finite))
        if finite:
            plain.step()
    for (name, ours), theirs in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg=name)
        assert optimizer.state[ours]["step"] == plain.state[theirs]["step"] == 3


def test_reading_the_state_before_the_first_step_changes_no_step(tiny: Callable[..., TrainConfig]) -> None:
    """torch makes the state of a new optimizer by a step of its own, and would count it."""
    trainer = Trainer(tiny())
    counters = [state["step"] for state in trainer.state.tensors()["optimizer"].values()]
    assert counters
    assert not any(counters)


def test_clipping_is_per_part() -> None:
    encoder, limit = small_encoder(), 3.0
    random_gradients(encoder, 0)
    with torch.no_grad():
        for parameter in encoder.ibot_head.parameters():
            parameter.grad *= 1e-4
    parts = [getattr(encoder, part) for part in PARTS]
    before = [[p.grad.clone() for p in part.parameters()] for part in parts]
    by_hand = [torch.sqrt(sum(g.square().sum() for g in gradients)) for gradients in before]
    norms = clip_gradients(parts, limit)
    torch.testing.assert_close(norms, torch.stack(by_hand))
    assert norms[1] > limit > norms[2]
    for part, gradients, norm in zip(parts, before, by_hand, strict=True):
        scale = min(limit / float(norm), 1.0)
        for parameter, gradient in zip(part.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient * scale, rtol=1e-5, atol=1e-12)


def test_clipping_can_be_switched_off() -> None:
    layer = nn.Linear(4, 4)
    random_gradients(layer, 0)
    before = [p.grad.clone() * 1e6 for p in layer.parameters()]
    for parameter, gradient in zip(layer.parameters(), before, strict=True):
        parameter.grad = gradient.clone()
    assert clip_gradients([layer], 0.0) > 1e6
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(layer.parameters(), before, strict=True))


def test_the_last_layer_keeps_still_at_first(tiny: Callable[..., TrainConfig]) -> None:
    snapshots: list[dict[str, Tensor]] = []

    def snap(_: nn.Module) -> dict[str, float]:
        snapshots.append({n: p.detach().clone() for n, p in trainer.pair.student.named_parameters()})
        return {}

    options = ["steps=3", "evaluation.every=1", "optimizer.warmup_steps=0", "optimizer.freeze_last_layer_steps=2"]
    trainer = Trainer(tiny(*options), snap)
    start = {n: p.detach().clone() for n, p in trainer.pair.student.named_parameters()}
    trainer.run()
    last_layers = [name for name in start if "last_layers" in name]
    others = [name for name in start if "head" in name and name.endswith("weight")]
    assert len(last_layers) == 12  # length and direction of three levels of two heads
    for name in last_layers:
        assert torch.equal(start[name], snapshots[1][name]), name
        assert not torch.equal(start[name], snapshots[2][name]), name
    for name in others:
        assert not torch.equal(start[name], snapshots[0][name]), name
