"""Weights in files: published ones by name, any checkpoint in circulation, and what each of them is."""

from franca.hub.checkpoint import CheckpointError, load_weights, save_teacher
from franca.hub.description import describe
from franca.hub.download import DownloadError
from franca.hub.load import franca_vitb14, franca_vitg14, franca_vitl14, franca_vits14, load_model

__all__ = [
    "CheckpointError",
    "DownloadError",
    "describe",
    "franca_vitb14",
    "franca_vitg14",
    "franca_vitl14",
    "franca_vits14",
    "load_model",
    "load_weights",
    "save_teacher",
]
