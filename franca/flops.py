"""Floating-point operations of a training step, from the networks and the shapes of a batch.

Multiply-add = 2. Counted: every matrix product (linear maps, attention, prototypes), and roughly what Sinkhorn, the
losses and the update do entry by entry. Norms, activations and LayerScale are not: below 1 % of the products.

A backward pass costs two forward passes, but one for the first maps of what learns, the patch embedding or, while the
backbone keeps still, the heads' slice maps: their inputs need no gradient. Shapes are
those that are computed: padded rows of masked patches, and under stochastic depth the crops that each branch keeps.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import nn

from franca.models import MatryoshkaHead
from franca.models.block import Block, draw_subset
from franca.objective import Encoder

SINKHORN_PER_ROUND = 8  # of each logit: multiply, add, maximum, subtract, clamp, exponential, sum, sum of columns
CROSS_ENTROPY = 17  # of each logit of the student: 7 for its target, 8 for the loss, 2 for the gradient
UPDATE = 20  # of each parameter: AdamW 14, clipping 3, moving average 3
FUSED_ATTENTION_AGAIN = 0.5  # fused kernels compute one of attention's two products again in the backward pass


@dataclass(frozen=True)
class BatchShape:
    """What one process computes at once: B images with two global crops each; sides in pixels."""

    n_images: int
    global_size: int
    local_size: int
    local_count: int  # local crops of an image
    masked_rows: int  # masked patches of all global crops, padding included

    @property
    def global_crops(self) -> tuple[int, int]:
        """Number and side."""
        return 2 * self.n_images, self.global_size

    @property
    def crops(self) -> list[tuple[int, int]]:
        """Number and side of the crops that the student sees, by size."""
        local = [(self.local_count * self.n_images, self.local_size)] if self.local_count else []
        return [self.global_crops, *local]


@dataclass(frozen=True)
class Products:
    """Operations of the matrix products in one pass through an encoder."""

    patch_embedding: float = 0.0
    linear: float = 0.0  # linear maps of the blocks
    attention: float = 0.0
    projectors: float = 0.0  # of both heads: slice maps and MLPs
    prototypes: float = 0.0  # of both heads

    @property
    def backbone(self) -> float:
        return self.patch_embedding + self.linear + self.attention

    @property
    def total(self) -> float:
        return self.backbone + self.projectors + self.prototypes

    def __add__(self, other: "Products") -> "Products":
        return Products(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Products":
        return Products(*(value * factor for value in astuple(self)))


@dataclass(frozen=True)
class StepFlops:
    """Operations of one optimizer step of one process."""

    teacher: Products
    student: Products  # forward
    backward: Products
    recomputed: Products  # by activation checkpointing and by fused attention
    sinkhorn: float
    losses: float
    update: float

    @property
    def model(self) -> float:
        """What the step needs, however it is computed: the number for utilisation."""
        return self.products.total

    @property
    def executed(self) -> float:
        """Matrix products that the device computes, those done twice included."""
        return self.model + self.recomputed.total

    @property
    def entrywise(self) -> float:
        """Work outside the matrix units, bound by memory: in no utilisation."""
        return self.sinkhorn + self.losses + self.update

    @property
    def products(self) -> Products:
        """Teacher, student and backward together, part by part."""
        return self.teacher + self.student + self.backward


def step_flops(
    encoder: Encoder,
    batch: BatchShape,
    accumulate: int = 1,
    sinkhorn_iterations: int = 3,
    recompute: str = "none",
    fused_attention: bool = True,
    backbone_learns: bool = True,
) -> StepFlops:
    """Operations of an optimizer step over ``accumulate`` batches of this shape.

    encoder: the student, on any device (meta too), sharded or not; its rate of stochastic depth counts. The teacher has
    the same shapes. recompute: none, selective (keeps products: nothing counted is done again) or full.
    backbone_learns: False while heads learn alone: no backward pass of the backbone, and nothing of it again.
    """
    teacher = _forward(encoder, [batch.global_crops], batch, dropping=False)
    student = _forward(encoder, batch.crops, batch, dropping=True)
    if backbone_learns:
        backward = student * 2 + Products(patch_embedding=-student.patch_embedding)
        recomputed = _done_again(student, recompute, fused_attention)
    else:
        backward, recomputed = _backward_of_heads(encoder, student, batch), Products()
    logits = _logits(encoder, batch, len_crops=batch.global_crops[0])
    learning = [encoder] if backbone_learns else [encoder.dino_head, encoder.ibot_head]
    parameters = sum(parameter.numel() for part in learning for parameter in part.parameters())
    return StepFlops(
        teacher=teacher * accumulate,
        student=student * accumulate,
        backward=backward * accumulate,
        recomputed=recomputed * accumulate,
        sinkhorn=SINKHORN_PER_ROUND * sinkhorn_iterations * logits * accumulate,
        losses=_losses(encoder, batch) * accumulate,
        update=UPDATE * parameters,
    )


def _done_again(student: Products, recompute: str, fused_attention: bool) -> Products:
    """By the backward pass of the backbone."""
    again = Products(attention=FUSED_ATTENTION_AGAIN * student.attention if fused_attention else 0.0)
    if recompute == "full":
        again += Products(linear=student.linear, attention=student.attention)
    return again


def _backward_of_heads(encoder: Encoder, student: Products, batch: BatchShape) -> Products:
    """While nothing asks for the gradient of the features, which is half of what the heads' slice maps cost."""
    rows = sum(count for count, _ in batch.crops)
    slices = _slice_maps(encoder.dino_head, rows) + _slice_maps(encoder.ibot_head, batch.masked_rows)
    return Products(projectors=2 * student.projectors - slices, prototypes=2 * student.prototypes)


def _slice_maps(head: nn.Module, rows: int) -> float:
    assert isinstance(head, MatryoshkaHead)
    return _map(head.matryoshka_projections, rows)


def _forward(encoder: Encoder, crops: list[tuple[int, int]], batch: BatchShape, dropping: bool) -> Products:
    backbone = encoder.backbone
    tokens = [(count, 1 + backbone.num_register_tokens + (side // backbone.patch_size) ** 2) for count, side in crops]
    patches = sum(count * (side // backbone.patch_size) ** 2 for count, side in crops)
    linear = attention = 0.0
    for block in backbone.blocks:
        assert isinstance(block, Block)
        kept = kept_crops(tokens, block.drop_path_rate if dropping else 0.0)
        linear += _map(block, sum(count * length for count, length in kept))
        attention += sum(4.0 * count * length**2 * backbone.embed_dim for count, length in kept)
    rows = ((encoder.dino_head, sum(count for count, _ in crops)), (encoder.ibot_head, batch.masked_rows))
    return Products(
        patch_embedding=_map(backbone.patch_embed, patches),
        linear=linear,
        attention=attention,
        projectors=sum(_map(head, count) for head, count in rows),
        prototypes=sum(
            2.0 * count * parameter.numel()
            for head, count in rows
            for name, parameter in head.named_parameters()
            if name.endswith("weight_v")
        ),
    )


def kept_crops(sizes: Iterable[tuple[int, int]], rate: float) -> list[tuple[int, int]]:
    """Crops of each size that a branch sees under stochastic depth, as the block draws them: [(count, length)]."""
    nowhere = torch.device("meta")
    return [(len(draw_subset(count, rate, nowhere)) if rate else count, length) for count, length in sizes]


def _map(module: nn.Module, rows: int) -> float:
    """All linear maps and convolutions of ``module``, each applied once to every row (a patch is a row)."""
    maps = [child for child in module.modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    return 2.0 * rows * sum(child.weight.numel() for child in maps)


def _logits(encoder: Encoder, batch: BatchShape, len_crops: int) -> float:
    """Scores that the heads give for so many crops and all masked rows."""
    return float(len_crops * prototypes_of(encoder.dino_head) + batch.masked_rows * prototypes_of(encoder.ibot_head))


def prototypes_of(head: nn.Module) -> int:
    """Prototypes of all levels."""
    assert isinstance(head, MatryoshkaHead)
    return sum(head.prototypes)


def _losses(encoder: Encoder, batch: BatchShape) -> float:
    """Cross-entropy of all levels, forward and backward, and the distances of KoLeo within each global crop."""
    rows = sum(count for count, _ in batch.crops)
    koleo = 2 * 2.0 * batch.n_images**2 * encoder.backbone.embed_dim
    return CROSS_ENTROPY * _logits(encoder, batch, rows) + koleo
