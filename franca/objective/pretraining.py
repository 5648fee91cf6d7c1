"""The pretraining objective: a batch in, a LossReport out.

B images, each with 2 global crops and L local crops, all stacked crop-major; N patches of a global crop; M rows of
masked patches, padding included; J Matryoshka levels, narrowest first, with K_j prototypes; D feature width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from franca.models.matryoshka_head import Factors
from franca.objective.assignments import Assignments, Scores
from franca.objective.koleo import koleo_loss
from franca.objective.precision import precise
from franca.objective.prediction import predict
from franca.objective.sinkhorn import OverRanks, balance
from franca.objective.student_teacher import EncoderOutput, StudentTeacher

GatherRows = Callable[[Tensor], Tensor]


class Batch(Protocol):
    """What the objective reads of a batch; franca.data.batch.PretrainBatch has this form."""

    @property
    def global_crops(self) -> Tensor: ...  # (2B, C, H, W), all images of crop a, then of crop b
    @property
    def local_crops(self) -> Tensor | None: ...  # (L*B, C, h, w), or None
    @property
    def masks(self) -> Tensor: ...  # (2B, N) bool, True = the student doesn't see this patch
    @property
    def mask_indices(self) -> Tensor: ...  # (M,) int64 into 2B*N, padded with 0
    @property
    def mask_weights(self) -> Tensor: ...  # (M,) fp32, 1 / masked patches of the row's own crop, 0 for padding
    @property
    def mask_valid(self) -> Tensor: ...  # (M,) bool, False for padding
    @property
    def n_images(self) -> int: ...  # B


@dataclass
class ObjectiveConfig:
    """Weights of the terms and the student's side; the teacher's temperature is scheduled and comes with each call."""

    student_temperature: float = 0.1
    sinkhorn_iterations: int = 3
    crop_weight: float = 1.0  # local and global crop terms
    patch_weight: float = 1.0
    koleo_weight: float = 0.1  # of each of the two global crops; 0 skips the computation
    koleo_over: str = "rank"  # nearest neighbours among a micro-batch of: rank (one process, as the original) | all

    def __post_init__(self) -> None:
        if not (math.isfinite(self.student_temperature) and self.student_temperature > 0):
            raise ValueError(
                f"objective.student_temperature is {self.student_temperature}: it divides the student's logits and "
                "must be above 0, such as 0.1"
            )
        if self.sinkhorn_iterations < 1:
            raise ValueError(
                f"objective.sinkhorn_iterations is {self.sinkhorn_iterations}: at least 1 round is needed, "
                "the usual number is 3"
            )
        for name in ("crop_weight", "patch_weight", "koleo_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"objective.{name} is {value}: a loss weight must be 0 or above; 0 switches the term off"
                )
        if self.koleo_over not in ("rank", "all"):
            raise ValueError(f"objective.koleo_over is {self.koleo_over!r}: it must be rank or all")
        if self.crop_weight == 0 and self.patch_weight == 0:
            raise ValueError("objective.crop_weight and objective.patch_weight are both 0: nothing would be learned")


@dataclass
class Targets:
    """The teacher's answer to a batch, without gradient."""

    crop: list[Assignments]  # J x (2B, K_j), rows sum to 1
    patch: list[Assignments]  # J x (M, K_j), rows sum to 1, padding rows are 0; empty once the student has learned
    class_tokens: Tensor  # (2B, D)


@dataclass
class LossReport:
    """The optimised value with its parts, which add up to it."""

    total: Tensor  # scalar
    terms: dict[str, Tensor]  # scalars crop_local, crop_global, patch, koleo; weights included; their sum is the total
    levels: dict[str, Tensor]  # (J,) for crop_local, crop_global, patch; each sums to the term
    features: Tensor  # (2B, D) the student's class tokens of the global crops, detached
    choices: Tensor  # (2B,) int64: the student's best prototype for each global crop, widest level


class PretrainingObjective(nn.Module):
    """The student predicts the teacher's balanced assignments of crops and of masked patches (paper section 2.1).

    Summed over levels, with n = 2 + 2L and KoLeo of the student's class tokens:

        total = crop_weight * (local + 2 * global) / n + patch_weight * patch + koleo_weight * (koleo_a + koleo_b)

    With one level and block masks this is DINOv2's objective. With several processes the loss of the global batch is
    the mean of theirs; ``logsumexp_over_ranks``, ``sum_over_ranks`` and ``gather_rows`` are how they share what
    concerns all of them.
    """

    def __init__(
        self,
        pair: StudentTeacher,
        config: ObjectiveConfig,
        logsumexp_over_ranks: OverRanks | None = None,
        gather_rows: GatherRows | None = None,
        sum_over_ranks: OverRanks | None = None,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.config = config
        self.logsumexp_over_ranks = logsumexp_over_ranks
        self.sum_over_ranks = sum_over_ranks
        self.gather_rows = gather_rows if config.koleo_over == "all" else None

    def forward(self, batch: Batch, teacher_temperature: float | Tensor) -> LossReport:
        """The loss of one batch on its own."""
        (targets,) = self.assign([batch], teacher_temperature)
        return self.student_loss(batch, targets)

    @torch.no_grad()
    def assign(self, batches: Sequence[Batch], teacher_temperature: float | Tensor) -> list[Targets]:
        """Targets of every batch, from one Sinkhorn over the rows of all of them.

        Gradient accumulation gives all micro-batches of a step here; the mean of their student losses is then the loss
        of the batch they form together (KoLeo apart, which compares within a micro-batch).
        """
        crops, patches, class_tokens = self._answers(batches)
        valid = torch.cat([batch.mask_valid for batch in batches])
        assignments = self.balance(crops + patches, [None] * len(crops) + [valid] * len(patches), teacher_temperature)
        crop = _split_levels(assignments[: len(crops)], [len(batch.global_crops) for batch in batches])
        patch = _split_levels(assignments[len(crops) :], [len(batch.mask_indices) for batch in batches])
        return [Targets(*of_batch) for of_batch in zip(crop, patch, class_tokens, strict=True)]

    def _answers(self, batches: Sequence[Batch]) -> tuple[list[Factors], list[Factors], list[Tensor]]:
        """What the teacher says of all batches: factors of crops and of patches, joined, and each batch's tokens."""
        crops: list[Factors] = []
        patches: list[Factors] = []
        class_tokens = []
        for batch in batches:
            answer: EncoderOutput = self.pair.teacher([batch.global_crops], batch.mask_indices)
            crops, patches = _with_rows(crops, answer.crops), _with_rows(patches, answer.patches)
            class_tokens.append(answer.class_tokens)
        return crops, patches, class_tokens

    def balance(
        self, factors: Sequence[Factors], valid: Sequence[Tensor | None], temperature: float | Tensor
    ) -> list[Assignments]:
        """Sinkhorn over every level of both heads; valid: rows that take part, (N,) bool, None: all."""
        scores = [Scores.of(*level, rows) for level, rows in zip(factors, valid, strict=True)]
        iterations = self.config.sinkhorn_iterations
        return balance(scores, temperature, iterations, self.logsumexp_over_ranks, self.sum_over_ranks)

    predict = staticmethod(predict)

    def student_loss(self, batch: Batch, targets: Targets) -> LossReport:
        """The student's loss against given targets; the part of a step that has a gradient.

        It uses up ``targets.patch``, level by level: the largest of what a step keeps would else stay through the
        backward pass, which has no use for it.
        """
        local_crops = batch.local_crops
        has_local = local_crops is not None and len(local_crops) > 0
        crops = [batch.global_crops, local_crops] if has_local else [batch.global_crops]
        student: EncoderOutput = self.pair.student(crops, batch.mask_indices, batch.masks)

        # Patches first: what their targets held makes room for the gradients of prototypes.
        patch_losses = self._patch_losses(student.patches, targets.patch, batch)
        crop_losses, levels, choices = self._crop_losses(student.crops, targets.crop, batch.n_images)
        levels["patch"] = torch.stack(patch_losses).detach()
        features = student.class_tokens[: 2 * batch.n_images]
        koleo = self._koleo(features)
        return LossReport(
            total=torch.stack([*crop_losses, *patch_losses, koleo]).sum(),
            terms={name: values.sum() for name, values in levels.items()} | {"koleo": koleo.detach()},
            levels=levels,
            features=features.detach(),
            choices=choices,
        )

    def _crop_losses(
        self, student: list[Factors], targets: list[Assignments], n_images: int
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
        """Weighted loss per level, its detached parts (J,), and the best prototypes of the global crops, (2B,)."""
        views = len(student[0].rows) // n_images
        # Crop a of the student is matched with crop b of the teacher, b with a, and local crops with both.
        teachers = [(1,), (0,)] + [(0, 1)] * (views - 2)
        weight = self.config.crop_weight / (2 * views - 2) / n_images
        losses, local, whole = [], [], []
        for level, (factors, target) in enumerate(zip(student, targets, strict=True)):
            both = [target[:n_images], target[n_images:]]
            kind = torch.promote_types(factors.rows.dtype, torch.float32)
            weights = factors.rows.new_full((views * n_images,), weight, dtype=kind)
            answer = self.predict(
                *factors, weights, both, teachers, self.config.student_temperature, choose=level == len(student) - 1
            )
            losses.append(answer.loss)
            whole.append(answer.per_row[:2].sum())
            local.append(answer.per_row[2:].sum())
        assert answer.choices is not None
        parts = {"crop_local": weight * torch.stack(local), "crop_global": weight * torch.stack(whole)}
        return losses, parts, answer.choices[:2].flatten()

    def _patch_losses(self, student: list[Factors], targets: list[Assignments], batch: Batch) -> list[Tensor]:
        """Weighted loss per level, in which a crop counts as the mean over its masked patches; uses up ``targets``."""
        weights = batch.mask_weights * (self.config.patch_weight / (2 * batch.n_images))
        losses = []
        for factors in reversed(student):
            target = targets.pop()
            losses.append(self.predict(*factors, weights, [target], [(0,)], self.config.student_temperature).loss)
        return losses[::-1]

    def _koleo(self, features: Tensor) -> Tensor:
        """Weighted KoLeo of both global crops, each within its own crop: (2B, D) -> scalar."""
        if self.config.koleo_weight == 0:
            return precise(features.new_zeros(()))
        first, second = features.chunk(2)
        if self.gather_rows is not None:
            first, second = self.gather_rows(first), self.gather_rows(second)
        return self.config.koleo_weight * (koleo_loss(first) + koleo_loss(second))


def _with_rows(levels: list[Factors], more: list[Factors]) -> list[Factors]:
    """Level by level, the rows of both; the prototypes are the same, and those of the first are kept."""
    if not levels:
        return more
    both = zip(levels, more, strict=True)
    return [Factors(torch.cat([first.rows, second.rows]), first.prototypes) for first, second in both]


def _split_levels(levels: list[Assignments], rows: list[int]) -> list[list[Assignments]]:
    """Undoes `_with_rows`: one list of levels per batch, which has rows[i] rows."""
    ends = list(accumulate(rows))
    return [[level[end - count : end] for level in levels] for end, count in zip(ends, rows, strict=True)]
