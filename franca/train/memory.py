"""Memory that one process needs for a training step, from the networks and the shapes of a batch.

It follows what the code keeps: parameters, moments and the stream between blocks in fp32, the rest in the type that
products compute in (`size` bytes a number). Attention is counted as fused kernels do it, which keep no (N, N) matrix.
Legend: D width, T tokens of all crops, rows = tokens that a branch sees under stochastic depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from franca.flops import BatchShape, kept_crops, prototypes_of
from franca.models import MatryoshkaHead
from franca.models.block import Block
from franca.models.feed_forward import SwiGLU
from franca.objective import Encoder
from franca.objective.blocks import SCORES_ON_ACCELERATOR

PRECISE = 4  # bytes of an fp32 number
RESERVE = 1.1  # of the allocator, for what it can't fill, and kernels' own work space


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by what they hold, and the most at any moment of a step."""

    student: float
    teacher: float
    moments: float
    images: float
    copies: float  # parameters in the type of the products, or gathered from other processes
    backbone: float  # what the backward pass of the blocks needs
    heads: float  # the same for the heads
    targets: float  # what is stored of the teacher's answer
    kept_targets: float  # of it, through the backward pass
    scores: float  # prototypes, their gradients and the student's logits in work
    assigning: float  # the teacher's moment
    earlier_gradients: float  # of the micro-batches before, while one is computed
    head_gradients: float  # those that the heads have when the backbone's turn comes
    gradients: float

    @property
    def lasting(self) -> float:
        """What stays from step to step, with the images of one."""
        return self.student + self.teacher + self.moments + self.images

    @property
    def peak(self) -> float:
        """The most at any of four moments: assigning, losses, between heads and backbone, end of the backward pass."""
        learning = self.copies + self.kept_targets
        losses = self.copies + self.targets + self.backbone + self.heads + self.scores + self.earlier_gradients
        between = learning + self.backbone + max(self.head_gradients, self.earlier_gradients)
        return self.lasting + max(self.earlier_gradients + self.assigning, losses, between, learning + self.gradients)

    @property
    def needed(self) -> float:
        """The peak with the allocator's reserve."""
        return self.peak * RESERVE


def step_memory(
    encoder: Encoder,
    batch: BatchShape,
    size: int,
    accumulate: int = 1,
    recompute: str = "none",
    ranks: int = 1,
    shards: int = 1,
) -> Memory:
    """Memory of one of ``ranks`` processes, ``shards`` of which share one copy of the networks.

    encoder: the student, on the meta device or any other. size: bytes of a number in products, 2 (bf16) or 4 (fp32).
    recompute: none, selective or full.
    """
    heads = (encoder.dino_head, encoder.ibot_head)
    parameters = count(encoder) * PRECISE
    of_heads = sum(count(head) for head in heads) * PRECISE
    return Memory(
        student=parameters / shards,
        teacher=parameters / shards,
        moments=2 * parameters / shards,
        copies=_copies(encoder, size, ranks, shards),
        images=_pixels(encoder, batch) * PRECISE * accumulate,
        backbone=_backbone(encoder, batch, size, recompute),
        heads=sum(
            rows * _head_row(head, size) for head, rows in zip(heads, (_crops(batch), batch.masked_rows), strict=True)
        ),
        targets=_targets(encoder, batch, size) * accumulate,
        # The patches' are used up level by level, but those of all batches lie together until the last one's turn.
        kept_targets=size * _logits(encoder, batch.global_crops[0], 0)[0]
        if accumulate == 1
        else _targets(encoder, batch, size) * accumulate,
        scores=_scores(encoder, batch, size),
        assigning=_assigning(encoder, batch, size, accumulate),
        earlier_gradients=parameters / shards if accumulate > 1 else 0.0,
        head_gradients=of_heads / shards,
        gradients=parameters / shards,
    )


def count(module: nn.Module) -> int:
    """Parameters, one by one."""
    return sum(parameter.numel() for parameter in module.parameters())


def _crops(batch: BatchShape) -> int:
    return sum(number for number, _ in batch.crops)


def _pixels(encoder: Encoder, batch: BatchShape) -> float:
    return float(encoder.backbone.in_chans * sum(number * side**2 for number, side in batch.crops))


def _copies(encoder: Encoder, size: int, ranks: int, shards: int) -> float:
    """One process: autocast keeps casts, of prototypes as they are scaled for the product. Several: FSDP gathers all,
    or with shards two units and one's gradients, and the scaled prototypes come on top."""
    scaled = sum(
        parameter.numel() * size for name, parameter in encoder.named_parameters() if name.endswith("weight_v")
    )
    if shards > 1:
        units = sorted(count(unit) for unit in (*encoder.backbone.blocks, encoder.dino_head, encoder.ibot_head))
        return float(scaled + sum(units[-2:]) * size + units[-1] * PRECISE)
    if ranks > 1:
        return float(scaled + count(encoder) * size)
    return float(scaled if size == PRECISE else count(encoder) * size)


def _backbone(encoder: Encoder, batch: BatchShape, size: int, recompute: str) -> float:
    """What all blocks keep, one block's own work, the cast images and the last norm's input."""
    backbone = encoder.backbone
    sizes = [
        (number, 1 + backbone.num_register_tokens + (side // backbone.patch_size) ** 2) for number, side in batch.crops
    ]
    stream = PRECISE * backbone.embed_dim * sum(number * length for number, length in sizes)
    kept = working = 0.0
    for block in backbone.blocks:
        assert isinstance(block, Block)
        everything = _block(block, sizes, size)
        products = _block_products(block, sizes, size)
        kept += {"none": everything, "selective": stream + products, "full": stream}[recompute]
        working = max(working, everything - products if recompute == "selective" else everything)
    cast = _pixels(encoder, batch) * size if size != PRECISE else 0.0
    return kept + (working if recompute != "none" else 0.0) + 2 * stream + cast


def _rows(block: Block, sizes: Sequence[tuple[int, int]]) -> int:
    return sum(number * length for number, length in kept_crops(sizes, block.drop_path_rate))


def _block(block: Block, sizes: Sequence[tuple[int, int]], size: int) -> float:
    """Both norms' inputs in fp32; then norms' results, q, k, v, attention's result (twice when sizes are joined), what
    both LayerScales see, and the feed-forward network's results before and after each activation."""
    width, joined = block.attn.proj.in_features, int(len(sizes) > 1)
    first, last = _hidden(block)
    numbers = (8 + joined) * width + first + last * (2 if isinstance(block.mlp, SwiGLU) else 1)
    precise = 2 * width + block.attn.num_heads + 4  # log-sum-exp of each head, mean and deviation of each norm
    return float(_rows(block, sizes) * (PRECISE * precise + size * numbers))


def _block_products(block: Block, sizes: Sequence[tuple[int, int]], size: int) -> float:
    """Results of the linear maps and of attention, which selective recomputation keeps."""
    numbers = 6 * block.attn.proj.in_features + _hidden(block)[0]
    return float(_rows(block, sizes) * (PRECISE * block.attn.num_heads + size * numbers))


def _hidden(block: Block) -> tuple[int, int]:
    """Width after the first linear map of the feed-forward network, and before its last."""
    maps = [child for child in block.mlp.modules() if isinstance(child, nn.Linear)]
    return maps[0].out_features, maps[-1].in_features


def _head_row(head: nn.Module, size: int) -> float:
    """Bytes that a head keeps of one row: inputs and results of its maps; the normalised bottleneck in fp32 too."""
    assert isinstance(head, MatryoshkaHead)
    hidden, bottleneck, layers = (head.config[name] for name in ("hidden_dim", "bottleneck_dim", "layers"))
    cast = size != PRECISE
    per_level = [
        size * ((1 + cast) * width + 2 * hidden * (layers - 1) + (1 + cast) * bottleneck)
        + PRECISE * (1 + cast) * bottleneck
        for width in head.widths
    ]
    return float(sum(per_level) + PRECISE * head.in_dim)


def _assigning(encoder: Encoder, batch: BatchShape, size: int, accumulate: int) -> float:
    """Stored logits of all batches, a block of them as it leaves the product, and scaled prototypes."""
    stored = accumulate * _targets(encoder, batch, size)
    return stored + _block_of_scores(encoder, batch) * PRECISE + _scaled_prototypes(encoder)


def _targets(encoder: Encoder, batch: BatchShape, size: int) -> float:
    """The teacher's logits of one batch as they are stored."""
    return size * _logits(encoder, batch.global_crops[0], batch.masked_rows)[0]


def _scores(encoder: Encoder, batch: BatchShape, size: int) -> float:
    """Scaled prototypes and their gradients, both in fp32, and a block of logits with its gradient."""
    gradient = size if size != PRECISE else 0  # of the logits' own type it takes their place
    return 2 * _scaled_prototypes(encoder) + _block_of_scores(encoder, batch) * (PRECISE + gradient)


def _scaled_prototypes(encoder: Encoder) -> float:
    """Of both heads, in fp32."""
    heads = (encoder.dino_head, encoder.ibot_head)
    return float(PRECISE * sum(prototypes_of(head) * head.config["bottleneck_dim"] for head in heads))


def _block_of_scores(encoder: Encoder, batch: BatchShape) -> float:
    """Logits of the largest level, as many as an accelerator works on at once."""
    return min(SCORES_ON_ACCELERATOR, _logits(encoder, _crops(batch), batch.masked_rows)[1])


def _logits(encoder: Encoder, crops: int, patches: int) -> tuple[float, float]:
    """Logits for so many rows: of both heads and all levels, and of the largest level of one head."""
    both = [(encoder.dino_head, crops), (encoder.ibot_head, patches)]
    total = sum(rows * prototypes_of(head) for head, rows in both)
    return float(total), float(max(rows * max(head.prototypes) for head, rows in both))
