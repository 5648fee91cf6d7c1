"""Weights in files: what a teacher file holds, and models built from it."""

from franca.hub.checkpoint import CheckpointError, describe, load_model, load_weights, save_teacher, write_atomically

__all__ = ["CheckpointError", "describe", "load_model", "load_weights", "save_teacher", "write_atomically"]
