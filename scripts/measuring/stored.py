"""The objective alone: forward and backward from what the heads gave, again and again from the same values."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from franca.data.batch import PretrainBatch
from franca.devices import compute_in, peak_memory
from franca.models.matryoshka_head import Factors, MatryoshkaHead
from franca.objective import PretrainingObjective
from franca.objective.eager import EagerObjective
from franca.objective.student_teacher import EncoderOutput
from franca.train.build import build_encoder
from franca.train.config import TrainConfig
from measuring.facts import reset_peak
from measuring.stepping import Stepping
from measuring.timing import finish

PROJECT, EAGER = "project", "eager"
OBJECTIVES: dict[str, Callable[..., PretrainingObjective]] = {PROJECT: PretrainingObjective, EAGER: EagerObjective}
PADDING = 0.08  # of the rows of masked patches, as in the paper's batches


@dataclass(frozen=True)
class Stored:
    """What the heads of both networks said of a batch, and what else the objective reads of that."""

    batch: PretrainBatch
    teacher: EncoderOutput
    student: EncoderOutput

    @property
    def rows(self) -> int:
        """Of masked patches, padding included."""
        return len(self.batch.mask_indices)

    @property
    def prototypes(self) -> int:
        """Of the patches' head, all levels."""
        return sum(len(level.prototypes) for level in self.student.patches)

    def copies(self) -> "Stored":
        """The same values in tensors of their own; the student's ask for gradients."""
        given = changed(self.teacher, lambda tensor: tensor.detach().clone())
        learning = changed(self.student, lambda tensor: tensor.detach().clone().requires_grad_())
        return Stored(self.batch, given, learning)


def changed(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    parts = [changed(part, change) for part in output]
    return type(output)(*parts) if hasattr(output, "_fields") else parts


def tensors(output: Any) -> Iterator[Tensor]:
    """All of them, in order."""
    if isinstance(output, Tensor):
        yield output
    else:
        for part in output:
            yield from tensors(part)


def answers(stepping: Stepping) -> Stored:
    """Of the networks, to their next batch."""
    batch, pair = stepping.draw()[0], stepping.training.pair
    crops = [batch.global_crops] if batch.local_crops is None else [batch.global_crops, batch.local_crops]
    with torch.no_grad(), compute_in(stepping.precision, stepping.device):
        teacher = pair.teacher(crops[:1], batch.mask_indices)
        return Stored(batch, teacher, pair.student(crops, batch.mask_indices, batch.masks))


def made_up(config: TrainConfig, rows: int, device: torch.device, precision: torch.dtype | None) -> Stored:
    """Random answers of the configured heads to ``rows`` rows of masked patches and the crops that go with them."""
    torch.manual_seed(config.seed)
    with torch.device("meta"):
        encoder = build_encoder(config, 0.0)
    patches = (config.data.crops.global_size // config.model.patch_size) ** 2
    per_image = 2 * patches * config.data.mask.probability * sum(config.data.mask.ratio) / 2
    images = max(1, round(rows / per_image))
    crops = (2 + config.data.crops.local_count) * images
    kind = precision or torch.float32

    def answer(count: int) -> EncoderOutput:
        tokens = torch.randn(count, encoder.backbone.embed_dim, device=device)
        crop_levels = _random_factors(encoder.dino_head, count, device, kind)
        return EncoderOutput(tokens, crop_levels, _random_factors(encoder.ibot_head, rows, device, kind))

    return Stored(_batch(images, crops - 2 * images, rows).to(device), answer(2 * images), answer(crops))


def _random_factors(head: MatryoshkaHead, rows: int, device: torch.device, kind: torch.dtype) -> list[Factors]:
    """Directions, as normalised heads give them."""
    width = head.config["bottleneck_dim"]

    def directions(count: int) -> Tensor:
        return F.normalize(torch.randn(count, width, device=device), dim=1)

    return [Factors(directions(rows).to(kind), directions(count)) for count in head.prototypes]


def _batch(images: int, local: int, rows: int) -> PretrainBatch:
    """Crops of no size, since only their number counts here."""
    used = max(1, round(rows * (1 - PADDING)))
    valid = torch.arange(rows) < used
    return PretrainBatch(
        global_crops=torch.empty(2 * images, 0),
        local_crops=torch.empty(local, 0) if local else None,
        masks=torch.empty(2 * images, 0, dtype=torch.bool),
        mask_indices=torch.zeros(rows, dtype=torch.int64),
        mask_weights=valid.float() * (images / used),  # half of the 2 * images global crops are masked
        mask_valid=valid,
        n_images=images,
    )


def run(way: str, stored: Stored, config: TrainConfig, precision: torch.dtype | None) -> Tensor:
    """Loss of the stored answers; their gradients are left in ``stored.student``."""
    pair: Any = SimpleNamespace(teacher=lambda *_: stored.teacher, student=lambda *_: stored.student)
    objective = OBJECTIVES[way](pair, config.objective)
    with compute_in(precision, stored.student.class_tokens.device):
        (targets,) = objective.assign([stored.batch], config.teacher.temperature)
        report = objective.student_loss(stored.batch, targets)
    report.total.backward()
    return report.total.detach()


@dataclass(frozen=True)
class Error:
    """Relative, of the loss and of everything that asks for gradients: ||g - right|| / ||right||."""

    loss: float
    gradient: float


def errors(stored: Stored, config: TrainConfig, precision: torch.dtype | None) -> dict[str, Error]:
    """Of every objective in that precision; right is the eager one in fp32 on the very same answers."""
    right = changed_types(stored)
    wanted = run(EAGER, right, config, None)
    found = {}
    for way in OBJECTIVES:
        mine = stored.copies()
        loss = run(way, mine, config, precision)
        difference = length = torch.zeros((), dtype=torch.float64)
        for one, other in zip(tensors(mine.student), tensors(right.student), strict=True):
            if one.grad is not None and other.grad is not None:
                difference = difference + (one.grad.double() - other.grad.double()).square().sum().cpu()
                length = length + other.grad.double().square().sum().cpu()
        found[way] = Error(float((loss - wanted).abs() / wanted.abs()), float((difference / length).sqrt()))
    return found


def changed_types(stored: Stored) -> Stored:
    """The same values in fp32."""
    precise = [changed(output, torch.Tensor.float) for output in (stored.teacher, stored.student)]
    return Stored(stored.batch, *precise).copies()


def peak_gb(way: str, stored: Stored, config: TrainConfig, precision: torch.dtype | None) -> float:
    """GB (10^9 bytes) that the objective needs at most beside the answers; on an accelerator."""
    device, mine = stored.student.class_tokens.device, stored.copies()
    finish(device)
    before = torch.accelerator.memory_allocated(device)
    reset_peak(device)
    run(way, mine, config, precision)
    finish(device)
    return (peak_memory(device) - before) / 1e9


def peak_gb_of_process(way: str, config: TrainConfig, rows: int, precision: torch.dtype | None) -> float:
    """The same on the CPU: by how much the resident set of a fresh process grows beyond the answers."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(partial(_growth, way, config, rows, precision))


def _growth(way: str, config: TrainConfig, rows: int, precision: torch.dtype | None) -> float:
    stored = made_up(replace(config, device="cpu"), rows, torch.device("cpu"), precision)
    learning = changed(stored.student, Tensor.requires_grad_)
    mine = Stored(stored.batch, stored.teacher, learning)
    return growth(lambda: run(way, mine, config, precision)) / 1e9


def growth(work: Callable[[], object]) -> int:
    """Bytes by which this process's resident set grows at most during ``work``.

    Linux's largest resident set is set back to the present one first: it holds the peak of making up the answers. Where
    that can't be written, what is below that peak isn't seen.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(line: str) -> int:
    """Bytes that this process has in memory now (VmRSS), or had at most (VmHWM), as Linux counts them.

    The usual count of the most, of which ``peak_memory`` knows, begins with what the parent process had. Where nothing
    else is there it stands for both.
    """
    with suppress(OSError):
        for text in Path("/proc/self/status").read_text().splitlines():
            if text.startswith(line):
                return int(text.split()[1]) * 1024
    return peak_memory(torch.device("cpu"))
