"""The pair of networks: a student that learns and a teacher that follows it as an exponential moving average."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from franca.distributed import local_part
from franca.models import MatryoshkaHead, VisionTransformer
from franca.models.matryoshka_head import Factors


class EncoderOutput(NamedTuple):  # sharding finds the tensors in a tuple, not in a dataclass
    """What both heads say about a set of crops: R crops in all, M rows of masked patches, J levels, narrowest first."""

    class_tokens: Tensor  # (R, D), backbone output after the last norm
    crops: list[Factors]  # J x ((R, bottleneck), (K_j, bottleneck))
    patches: list[Factors]  # J x ((M, bottleneck), (K_j, bottleneck))


class Encoder(nn.Module):
    """Backbone with a head for class tokens and a head for patches.

    While `backbone_learns` is False no gradient reaches the backbone: its parameters have none, so that an optimizer
    passes them over, weight decay and moments included.
    """

    def __init__(self, backbone: VisionTransformer, dino_head: MatryoshkaHead, ibot_head: MatryoshkaHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        self.backbone_learns = True

    def forward(self, crops: Sequence[Tensor], patch_indices: Tensor, masks: Tensor | None = None) -> EncoderOutput:
        """Class tokens of all crops, what they score, and what the chosen patches of the first entry score.

        crops: one tensor (R_i, C, h_i, w_i) per size, the global crops first; all go through the backbone together.
        patch_indices: (M,) int64 into the flattened (R_0 * N) patches of crops[0], all that the patch head sees.
        masks: (R_0, N) bool, patches of crops[0] that the mask token replaces; the other crops are never masked.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_learns):
            per_size = self.backbone.forward_features(list(crops), [masks] + [None] * (len(crops) - 1))
        class_tokens = torch.cat([features["x_norm_clstoken"] for features in per_size])
        patches = per_size[0]["x_norm_patchtokens"].flatten(0, 1).index_select(0, patch_indices)
        return EncoderOutput(class_tokens, self.dino_head.factors(class_tokens), self.ibot_head.factors(patches))


class StudentTeacher(nn.Module):
    """A student and its teacher, encoders of the same names and shapes.

    The teacher starts as a copy of the student, is always in eval mode (its rate of stochastic depth never matters) and
    never asks for a gradient.

    Raises RuntimeError, naming the tensors, if the teacher's names or shapes differ from the student's.
    """

    def __init__(self, student: Encoder, teacher: Encoder) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.teacher.load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Sets the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, over all parameters.

        Sharded parameters are averaged shard by shard: both networks must be sharded alike.
        """
        averages = [local_part(parameter) for parameter in self.teacher.parameters()]
        current = [local_part(parameter) for parameter in self.student.parameters()]
        torch._foreach_lerp_(averages, current, 1 - momentum)
