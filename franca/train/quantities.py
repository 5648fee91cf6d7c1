"""What is logged of every step: names, and the vector of values in their order."""

import torch
from torch import Tensor

from franca.objective import LossReport

PARTS = ("backbone", "dino_head", "ibot_head")  # clipped one by one, as the original does
TERMS = ("crop_local", "crop_global", "koleo", "patch")
LEVELLED = ("crop_local", "crop_global", "patch")


def metric_names(levels: int) -> list[str]:
    """Names of :func:`loss_values`, then those of the parts' gradient norms."""
    return [
        "loss",
        *TERMS,
        *(f"{term}/{level}" for term in LEVELLED for level in range(levels)),
        *(f"gradient_norm/{part}" for part in PARTS),
    ]


def loss_values(report: LossReport) -> Tensor:
    """Total, terms and levels as one vector, without gradient."""
    terms = [report.total, *(report.terms[term] for term in TERMS)]
    return torch.cat([torch.stack(terms), *(report.levels[term] for term in LEVELLED)]).detach()
