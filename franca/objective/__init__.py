"""What is learned: balanced assignments of the teacher, predicted by the student."""

from franca.objective.assignments import Assignments
from franca.objective.koleo import koleo_loss
from franca.objective.pretraining import LossReport, ObjectiveConfig, PretrainingObjective, Targets
from franca.objective.sinkhorn import sinkhorn_assignments
from franca.objective.student_teacher import Encoder, StudentTeacher

__all__ = [
    "Assignments",
    "Encoder",
    "LossReport",
    "ObjectiveConfig",
    "PretrainingObjective",
    "StudentTeacher",
    "Targets",
    "koleo_loss",
    "sinkhorn_assignments",
]
