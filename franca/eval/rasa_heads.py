"""The RASA head that goes with a network, of whichever library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from franca.eval.errors import EvalError
from franca.eval.loaders import LOCAL_DIR, ModelName
from franca.hub.description import describe_rasa
from franca.hub.files import rasa_beside, read_file
from franca.hub.layouts import build_rasa, recognise_rasa
from franca.models import RASAHead, VisionTransformer


def rasa_for(model: Callable[..., Any], asked: ModelName) -> RASAHead | None:
    """The head that was asked for: attached to a Franca network, in the folder of another, or in a file.

    Raises:
        EvalError: there is none, or RASA is folded into the network already.
        CheckpointError, OSError: a file that can't be used.
    """
    if asked.rasa is None:
        return None
    if isinstance(model, VisionTransformer):
        if model.patch_map is not None:
            raise EvalError(f"--rasa {asked.rasa}: RASA is folded into {asked.said} already; leave --rasa out")
        if model.rasa_head is not None and asked.kind in ("franca", "untrained"):
            return model.rasa_head
    file = _beside(asked) if asked.rasa == "inside" else Path(asked.rasa).expanduser()
    state = recognise_rasa(read_file(file), str(file))
    head = build_rasa(state, describe_rasa(state)["input_dim"], str(file))
    return head.requires_grad_(False)


def _beside(asked: ModelName) -> Path:
    """`rasa.pth` in the folder that a network was loaded from, as conversions leave it."""
    folder = Path(asked.name.removeprefix(LOCAL_DIR)).expanduser()
    found = rasa_beside(folder) if folder.is_dir() else None
    if found is None:
        raise EvalError(f"--rasa inside: {asked.said} has no RASA head beside it; give its file, --rasa FILE")
    return found
