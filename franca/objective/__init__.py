"""What is learned: balanced assignments of the teacher, predicted by the student."""

from franca.objective.losses import crop_loss, koleo_loss, patch_loss
from franca.objective.pretraining import LossReport, ObjectiveConfig, PretrainingObjective, Targets
from franca.objective.sinkhorn import joint_sinkhorn_assignments, sinkhorn_assignments
from franca.objective.student_teacher import Encoder, StudentTeacher

__all__ = [
    "Encoder",
    "LossReport",
    "ObjectiveConfig",
    "PretrainingObjective",
    "StudentTeacher",
    "Targets",
    "crop_loss",
    "joint_sinkhorn_assignments",
    "koleo_loss",
    "patch_loss",
    "sinkhorn_assignments",
]
