"""What a checkpoint is, in plain types."""

import re
from pathlib import Path
from typing import Any

from franca.hub.checkpoint import hash_tensors
from franca.hub.files import read_file
from franca.hub.layouts import Recognised, find_description, rasa_depth, recognise
from franca.hub.names import State
from franca.hub.parts import split
from franca.hub.preprocessing import told_normalisation


def describe(path: str | Path, num_heads: int | None = None) -> dict[str, Any]:
    """The description of a checkpoint.

    A teacher file of this project gives what it was saved with; its tensors are not read. Others give what their
    tensors and the files beside them tell: `arch`, `backbone` (constructor arguments), `heads`, `rasa`, `layout`,
    `notes`, `mean` and `std` where they are told, and the `hash` that the backbone alone would have in a teacher file,
    for which every tensor is read. A RASA head in a file of its own has no `arch` and no `backbone`.

    Args:
        path: a file or folder.
        num_heads: attention heads, where neither the file nor its width says it.

    Raises:
        FileNotFoundError, CheckpointError: as load_model.
    """
    content, origin = read_file(path), str(path)
    description = find_description(content, origin)
    if description and "teacher" in content:
        return description
    backbone, heads, rasa = split(content, origin)
    if rasa and not backbone and not heads:
        return {"layout": "rasa", "rasa": describe_rasa(rasa), "hash": hash_tensors(rasa)}
    found = recognise(content, origin, num_heads)
    described = (description or {}) | facts(found) | told_normalisation(Path(path), content)
    return described | {"hash": hash_tensors({f"backbone.{name}": tensor for name, tensor in found.backbone.items()})}


def facts(found: Recognised) -> dict[str, Any]:
    """What a recognised checkpoint holds, whether it describes itself or not."""
    return {
        "layout": found.layout,
        "arch": found.arch,
        "backbone": found.config,
        "heads": {name: describe_head(head) for name, head in found.heads.items()},
        "rasa": describe_rasa(found.rasa) if found.rasa else None,
        "notes": found.notes,
    }


def describe_rasa(rasa: State) -> dict[str, int]:
    """Arguments of RASAHead."""
    return {"input_dim": next(iter(rasa.values())).shape[-1], "n_pos_layers": rasa_depth(rasa)}


def describe_head(head: State) -> dict[str, Any]:
    """Its size; for each Matryoshka level, narrowest first, the features that it reads and its prototypes."""
    return {
        "parameters": sum(tensor.numel() for tensor in head.values()),
        "widths": _rows(head, r"matryoshka_projections\.(\d+)\.weight"),
        "prototypes": _rows(head, r"last_layers?(?:\.(\d+))?\.weight_v"),
    }


def _rows(head: State, pattern: str) -> list[int]:
    """Numbers of rows of the tensors with such names, in the order of the numbers in these."""
    found = ((re.fullmatch(pattern, name), len(tensor)) for name, tensor in head.items() if tensor.ndim)
    return [rows for _, rows in sorted((int(match[1] or 0), rows) for match, rows in found if match)]
