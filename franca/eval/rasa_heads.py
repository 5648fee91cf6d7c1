"""The RASA head that goes with a network, of whichever library."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from franca.eval.errors import EvalError
from franca.eval.loaders import LOCAL_DIR, ModelName
from franca.hub.checkpoint import CheckpointError, hash_tensors
from franca.hub.description import describe_rasa
from franca.hub.files import rasa_beside, read_file
from franca.hub.layouts import build_rasa, recognise_rasa
from franca.hub.names import State
from franca.models import RASAHead, VisionTransformer

logger = logging.getLogger(__name__)
HEAD, FACTS = "rasa.pth", "rasa.json"  # of a RASA run; in a release the facts hold the hash of the head they are about


def rasa_for(model: Callable[..., Any], asked: ModelName) -> RASAHead | None:
    """The head that was asked for: attached to a Franca network, in the folder of another, or in a file.

    A head that is known to come from other weights is warned of.

    Raises:
        EvalError: there is none, it reads features of another width, or RASA is folded into the network already.
        CheckpointError, OSError: a file that can't be used.
    """
    if asked.rasa is None:
        return None
    if isinstance(model, VisionTransformer):
        if model.patch_map is not None:
            raise EvalError(f"--rasa {asked.rasa}: RASA is folded into {asked.said} already; leave --rasa out")
        if model.rasa_head is not None and asked.rasa == "inside":
            return model.rasa_head
    file = _beside(asked) if asked.rasa == "inside" else Path(asked.rasa).expanduser()
    state, head = _read(file, asked)
    check_width(head, getattr(model, "embed_dim", None), asked.said)
    _warn_of_other_weights(model, state, file, asked)
    if isinstance(model, VisionTransformer) and asked.kind == "franca":
        model.rasa_head = head
    return head


def _read(file: Path, asked: ModelName) -> tuple[State, RASAHead]:
    """Tensors and head of a file; errors name the option, since --model reads files too."""
    try:
        state = recognise_rasa(read_file(file), str(file))
        return state, build_rasa(state, describe_rasa(state)["input_dim"], str(file)).requires_grad_(False)
    except (CheckpointError, FileNotFoundError) as error:
        raise type(error)(f"--rasa {asked.rasa}: {error}") from error


def check_width(head: RASAHead, width: object, name: str) -> None:
    """Raises EvalError for a head of another width than that of a network's patch features, where it tells it."""
    if isinstance(width, int) and width != head.input_dim:
        raise EvalError(
            f"the RASA head reads patch features of width {head.input_dim}, those of {name} have {width}: give the "
            "head that was trained for this network"
        )


def _beside(asked: ModelName) -> Path:
    """`rasa.pth` in the folder that a network was loaded from, as conversions leave it."""
    folder = Path(asked.name.removeprefix(LOCAL_DIR)).expanduser()
    found = rasa_beside(folder) if folder.is_dir() else None
    if found is None:
        raise EvalError(f"--rasa inside: {asked.said} has no RASA head beside it; give its file, --rasa FILE")
    return found


def _warn_of_other_weights(model: Callable[..., Any], state: State, file: Path, asked: ModelName) -> None:
    """Where the head tells whose it is; positions that were resampled (img_size) make a network's hash another."""
    facts = _facts_of(state, file)
    owner = facts.get("backbone_hash")
    if not owner or not isinstance(model, nn.Module) or asked.img_size is not None:
        return
    own = hash_tensors({name: tensor for name, tensor in model.state_dict().items() if "rasa_head." not in name})
    if own != owner:
        logger.warning(
            "the RASA head %s was trained on other weights (%s, hash of its tensors %s) than those of %s (hash of its "
            "tensors %s): what it removes there need not be position",
            *(file, facts.get("backbone", "?"), owner[:12], asked.said, own[:12]),
        )


def _facts_of(state: State, file: Path) -> dict[str, Any]:
    """What the file beside a head says of it; nothing where there is none, or it is about another head."""
    try:
        facts = json.loads(file.with_name(FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    about_it = isinstance(facts, dict) and (
        facts["hash"] == hash_tensors(state) if "hash" in facts else file.name == HEAD
    )
    return facts if about_it else {}
