"""What a run will cost, before it starts: memory of each device, time of a step, device hours of the whole."""

from dataclasses import dataclass

import torch

from franca.config import ConfigError
from franca.data.batch import draw_masks
from franca.devices import choose_device, choose_precision
from franca.flops import BatchShape, StepFlops, step_flops
from franca.objective import Encoder
from franca.peaks import PEAKS, Peak, find_peak, name_of, peak_flops
from franca.train.build import build_encoder, refused_as
from franca.train.config import TrainConfig
from franca.train.memory import Memory, step_memory

UTILISATION = 0.3  # of the peak; published runs of this kind reach 15 to 31 %
PER_MACHINE = 8


@dataclass(frozen=True)
class Estimate:
    """The figures, and what they rest on."""

    config: TrainConfig
    device: str
    devices: int
    bf16: bool
    peak: float  # FLOP/s of one device
    capacity: float | None  # bytes of one device, where known
    utilisation: float
    flops: StepFlops  # of one device, a step in which everything learns
    alone: StepFlops  # a step in which the heads learn alone
    memory: Memory

    @property
    def seconds(self) -> float:
        """One optimizer step in which everything learns."""
        return self._takes(self.flops)

    @property
    def seconds_alone(self) -> float:
        """One optimizer step in which the heads learn alone."""
        return self._takes(self.alone)

    def _takes(self, flops: StepFlops) -> float:
        return flops.model / (self.peak * self.utilisation)

    @property
    def hours(self) -> float:
        """The whole run, without evaluations and saving."""
        alone = self.config.optimizer.freeze_backbone_steps
        return (self.seconds_alone * alone + self.seconds * (self.config.steps - alone)) / 3600

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None when the device's is not known."""
        return None if self.capacity is None else self.memory.needed <= self.capacity


def batch_shape(config: TrainConfig, encoder: Encoder) -> BatchShape:
    """What one process computes at once."""
    crops, patch = config.data.crops, encoder.backbone.patch_size
    grid = crops.global_size // patch
    mask = config.data.mask
    _, masked = draw_masks(2 * config.data.batch_size, mask.build((grid, grid)), mask, torch.Generator())
    return BatchShape(config.data.batch_size, crops.global_size, crops.local_size, crops.local_count, masked)


def work_of_step(config: TrainConfig, student: Encoder, backbone_learns: bool = True) -> StepFlops:
    """Operations of one optimizer step of one process; the one count that estimates and logs use.

    student: on any device, sharded or not. backbone_learns: False while heads learn alone.
    """
    return step_flops(
        student,
        batch_shape(config, student),
        config.accumulate,
        config.objective.sinkhorn_iterations,
        config.parallel.activation_checkpointing,
        backbone_learns=backbone_learns,
    )


def estimate(
    config: TrainConfig, devices: int = 0, device_name: str = "", utilisation: float = UTILISATION
) -> Estimate:
    """Estimate a run on ``devices`` devices of that name.

    devices: one process each; 0: the configured ``world_size``, else 1. device_name: one of PEAKS, or what a device
    calls itself; "": this machine's.

    Raises:
        ConfigError: an unknown device, or a configuration that doesn't fit so many processes.
    """
    devices = devices or max(config.world_size, 1)
    if devices < 1 or not 0 < utilisation <= 1:
        raise ConfigError(f"--devices {devices} --utilisation {utilisation}: at least 1, and a share above 0 up to 1")
    config = config.for_ranks(devices)
    with torch.device("meta"), refused_as("model, heads"):  # shapes alone
        student = build_encoder(config, config.model.drop_path_rate)
    name, known, bf16, peak = _device(config, device_name)
    batch, parallel = batch_shape(config, student), config.parallel
    with refused_as("parallel"):
        shards = parallel.shards(devices, min(devices, PER_MACHINE))
    recompute = parallel.activation_checkpointing
    return Estimate(
        config=config,
        device=name,
        devices=devices,
        bf16=bf16,
        peak=peak,
        capacity=known.memory * 1e9 if known else None,
        utilisation=utilisation,
        flops=work_of_step(config, student),
        alone=work_of_step(config, student, backbone_learns=False),
        memory=step_memory(student, batch, 2 if bf16 else 4, config.accumulate, recompute, devices, shards),
    )


def _device(config: TrainConfig, name: str) -> tuple[str, Peak | None, bool, float]:
    """Its name, its entry in the table, whether it computes in bf16, and its FLOP/s."""
    if not name:
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        return name_of(device), find_peak(name_of(device)), precision is not None, peak_flops(device, precision)
    known = find_peak(name)
    if known is None:
        raise ConfigError(f"--device-name {name!r} is not known; choose one of {', '.join(PEAKS)}, or leave it out")
    bf16 = known.bf16 is not None and config.precision != "fp32"
    return name, known, bf16, 1e12 * (known.bf16 if bf16 and known.bf16 else known.fp32)


def report(result: Estimate) -> str:
    """The estimate as a page to read."""
    config, memory, flops = result.config, result.memory, result.flops
    images = config.data.batch_size * config.accumulate
    products = flops.products
    rows: list[tuple[str, str]] = [
        ("run", f"{config.model.arch}, {config.steps} steps of {config.effective_batch} images"),
        (
            "devices",
            f"{result.devices} × {result.device}, {config.parallel.strategy}, {'bf16' if result.bf16 else 'fp32'}",
        ),
        ("", ""),
        ("memory of one device", "GB"),
        *((f"  {name}", f"{value / 1e9:.2f}") for name, value in _memory_rows(memory)),
        ("  most at one moment", f"{memory.peak / 1e9:.2f}"),
        ("  with 10 % for the allocator", f"{memory.needed / 1e9:.2f}{_verdict(result)}"),
        ("", ""),
        ("work of one image", "TFLOP"),
        *((f"  {name}", f"{value / images / 1e12:.4f}") for name, value in _work_rows(flops)),
        (
            "  all products",
            f"{products.total / images / 1e12:.4f} ({_share(products.backbone, products.total)} backbone, "
            f"{_share(products.projectors, products.total)} heads, "
            f"{_share(products.prototypes, products.total)} prototypes)",
        ),
        ("  done twice", f"{flops.recomputed.total / images / 1e12:.4f}"),
        ("", ""),
        ("time", f"at {result.utilisation:.0%} of {result.peak / 1e12:.4g} TFLOP/s"),
        ("  a step", f"{result.seconds:.3g} s"),
        *_alone_rows(result),
        ("  images per second", f"{config.effective_batch / result.seconds:,.0f}"),
        ("  the run", f"{_duration(result.hours)}, {_number(result.hours * result.devices)} device hours"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}".rstrip() for name, value in rows]
    return "\n".join([*lines, "", *_assumptions(result)])


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{_number(60 * hours)} minutes"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _alone_rows(result: Estimate) -> list[tuple[str, str]]:
    steps = result.config.optimizer.freeze_backbone_steps
    return [(f"  each of {steps:,} of heads alone", f"{result.seconds_alone:.3g} s")] if steps else []


def _memory_rows(memory: Memory) -> list[tuple[str, float]]:
    return [
        ("student", memory.student),
        ("teacher", memory.teacher),
        ("AdamW's moments", memory.moments),
        ("gradients", memory.gradients),
        ("parameters cast or gathered", memory.copies),
        ("images", memory.images),
        ("activations of the backbone", memory.backbone),
        ("activations of the heads", memory.heads),
        ("targets", memory.targets),
        ("logits and losses", memory.scores),
    ]


def _work_rows(flops: StepFlops) -> list[tuple[str, float]]:
    return [
        ("teacher", flops.teacher.total),
        ("student, forward", flops.student.total),
        ("student, backward", flops.backward.total),
    ]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}"


def _verdict(result: Estimate) -> str:
    if result.capacity is None:
        return ""
    limit = f"{result.capacity / 1e9:.0f}"
    if result.fits:
        return f" of {limit}: fits"
    return f" of {limit}: DOES NOT FIT"


def _assumptions(result: Estimate) -> list[str]:
    lines = [
        f"Assumed: {result.utilisation:.0%} of the peak (--utilisation), data that keeps up, no evaluations, attention",
        "by a fused kernel. Not all parts of the memory are there at once. Sinkhorn, losses and the update are not in",
        f"the time: they are bound by memory ({result.flops.entrywise / result.flops.model:.1%} of the operations).",
    ]
    if find_peak(result.device) is None:
        lines += [
            f"{result.device}: its peak was measured just now by a product of two matrices, beside whatever else runs",
            "here; its memory is not known.",
        ]
    if result.fits is False:
        lines.append(_advice(result))
    return lines


def _advice(result: Estimate) -> str:
    """The settings that would help, those that change nothing else first."""
    parallel, ways = result.config.parallel, []
    if parallel.activation_checkpointing != "full":
        ways.append("parallel.activation_checkpointing=full")
    if parallel.strategy == "replicate" and result.devices > 1:
        ways.append("parallel.strategy=shard")
    ways.append("a smaller data.batch_size with a larger accumulate")
    return "To fit: " + ", or ".join(ways) + "."
