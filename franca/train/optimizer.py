"""AdamW over parameter groups that differ in learning rate, weight decay and freezing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim.adamw import adamw

from franca.distributed import local_part, norms_over_shards
from franca.train.schedules import CosineSchedule, StepValues


@dataclass
class OptimizerConfig:
    """AdamW, its schedules, and which parameters learn slower."""

    lr: float = 1e-3  # peak, at a batch of lr_reference_batch
    lr_scaling: str = "sqrt"  # with the effective batch: sqrt | linear | none
    lr_reference_batch: int = 1024
    min_lr: float = 1e-6
    warmup_steps: int = 100_000
    weight_decay: float = 0.04  # by a cosine to weight_decay_end
    weight_decay_end: float = 0.2
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip_grad: float = 3.0  # largest gradient norm of each of backbone, dino_head, ibot_head; 0: no clipping
    freeze_last_layer_steps: int = 1250  # prototypes keep still at first
    freeze_backbone_steps: int = 0  # new heads (init_from) learn alone at first; all schedules begin after that
    freeze_lr: float = 1e-3  # of the heads meanwhile, after a tenth of these steps; scaled as lr
    layerwise_decay: float = 1.0
    patch_embed_lr_mult: float = 0.2

    def __post_init__(self) -> None:
        if self.lr_scaling not in ("sqrt", "linear", "none"):
            raise ValueError(f"optimizer.lr_scaling={self.lr_scaling!r} must be sqrt, linear or none")
        for name in ("lr", "freeze_lr", "lr_reference_batch", "layerwise_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be above 0 and finite")
        for name in ("min_lr", "weight_decay", "weight_decay_end", "clip_grad", "patch_embed_lr_mult"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must not be negative or infinite")
        for name in ("warmup_steps", "freeze_last_layer_steps", "freeze_backbone_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must not be negative")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optimizer.betas={self.betas} must be two numbers in [0, 1)")

    def peak_lr(self, batch: int) -> float:
        """Learning rate after the warm-up for an effective batch of ``batch`` images."""
        return self.lr * self._scale(batch)

    def _scale(self, batch: int) -> float:
        ratio = batch / self.lr_reference_batch
        return {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[self.lr_scaling]

    def heads_alone_schedule(self, batch: int) -> CosineSchedule:
        """Of the steps in which the backbone keeps still: from 0 to ``freeze_lr`` in their first tenth, then held."""
        peak, steps = self.freeze_lr * self._scale(batch), self.freeze_backbone_steps
        return CosineSchedule(peak, peak, steps, warmup=steps // 10)

    def lr_schedule(self, steps: int, batch: int) -> CosineSchedule:
        """Warm-up from 0 to the peak, then a cosine to ``min_lr``."""
        return CosineSchedule(self.peak_lr(batch), self.min_lr, steps, warmup=self.warmup_steps)

    def weight_decay_schedule(self, steps: int) -> CosineSchedule:
        """Cosine from ``weight_decay`` to ``weight_decay_end``."""
        return CosineSchedule(self.weight_decay, self.weight_decay_end, steps)


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter follows the schedules."""

    lr_multiplier: float
    weight_decay_multiplier: float
    is_last_layer: bool


def backbone_rule(name: str, depth: int, config: OptimizerConfig) -> ParameterRule:
    """Rule for a backbone parameter: layer-wise decay from the top, slower patch embedding.

    Layer 0 holds tokens, positions and the patch embedding; block i is layer i + 1; the final norm is ``depth + 1``.
    """
    layer = depth + 1
    if name.startswith(("cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed")):
        layer = 0
    elif name.startswith("blocks."):
        layer = int(name.split(".")[1]) + 1
    lr = config.layerwise_decay ** (depth + 1 - layer)
    if name.startswith("patch_embed"):
        lr *= config.patch_embed_lr_mult
    return ParameterRule(lr, _weight_decay_multiplier(name), False)


def head_rule(name: str) -> ParameterRule:
    """Rule for a head parameter: full learning rate, prototypes marked as last layer."""
    return ParameterRule(1.0, _weight_decay_multiplier(name), name.startswith("last_layers"))


def _weight_decay_multiplier(name: str) -> float:
    return 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0


def build_optimizer(encoder: nn.Module, depth: int, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over ``encoder`` (submodules backbone, dino_head, ibot_head), parameters of one rule in one group.

    Each group carries its ``rule``; :func:`apply_schedules` sets lr and weight decay from it before every step.
    """
    groups: dict[ParameterRule, list[nn.Parameter]] = {}
    for part, module in encoder.named_children():
        for name, parameter in module.named_parameters():
            rule = backbone_rule(name, depth, config) if part == "backbone" else head_rule(name)
            groups.setdefault(rule, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "rule": rule} for rule, parameters in groups.items()],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=True,
    )
    _make_state(optimizer)
    return optimizer


def _make_state(optimizer: torch.optim.AdamW) -> None:
    """Moments and step counters of 0, as the first step would make them.

    Asked for the state of a new optimizer, ``get_optimizer_state_dict`` takes a step of its own to have one, and leaves
    every counter at 1: the bias correction of all later steps would be one step ahead.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def apply_schedules(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Set every group's learning rate and weight decay for the coming step."""
    for group in optimizer.param_groups:
        rule: ParameterRule = group["rule"]
        group["lr"] = rule.lr_multiplier * (values.last_layer_lr if rule.is_last_layer else values.lr)
        group["weight_decay"] = rule.weight_decay_multiplier * values.weight_decay


@torch.no_grad()
def clip_gradients(parts: Iterable[nn.Module], limit: float, mesh: DeviceMesh | None = None) -> Tensor:
    """Scale each part's gradient to a norm of at most ``limit`` (0: leave it); norms before clipping, one per part.

    mesh: of the ranks among which the parts are sharded; the norms are those of the whole gradients, on every rank.
    A part without gradients, such as a frozen one, has norm 0.
    """
    parts = list(parts)
    gradients = [_local(p.grad for p in part.parameters() if p.grad is not None) for part in parts]
    device = next(parts[0].parameters()).device
    norms = [torch.nn.utils.get_total_norm(found) if found else torch.zeros((), device=device) for found in gradients]
    whole = norms_over_shards(torch.stack(norms), mesh)
    if limit > 0:
        for found, factor in zip(gradients, (limit / (whole + 1e-6)).clamp(max=1.0), strict=True):
            if found:
                torch._foreach_mul_(found, factor)
    return whole


@torch.no_grad()
def step_if_finite(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """Take the optimizer step on the device's own word: where ``finite`` (0-dim bool) is False nothing changes.

    Fused AdamW reads ``found_inf`` on the device, so nothing waits for it. Each process steps what it holds: AdamW goes
    entry by entry, and sharded tensors as such cost the program more time than the step itself.
    """
    found_inf = (~finite).float()
    for group in optimizer.param_groups:
        learning = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [optimizer.state[parameter] for parameter in learning]
        adamw(
            _local(learning),
            _local(parameter.grad for parameter in learning),
            _local(state["exp_avg"] for state in states),
            _local(state["exp_avg_sq"] for state in states),
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "weight_decay", "eps")},
        )


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local_part(tensor) for tensor in tensors]
