"""What a checkpoint is, in plain types."""

from pathlib import Path
from typing import Any

from franca.hub.checkpoint import hash_tensors
from franca.hub.files import read_file
from franca.hub.layouts import find_description, rasa_depth, recognise, split
from franca.hub.names import State


def describe(path: str | Path, num_heads: int | None = None) -> dict[str, Any]:
    """The description of a checkpoint, without reading its tensors into memory.

    A teacher file of this project gives what it was saved with. Others give what their tensors tell: `arch`, `backbone`
    (constructor arguments), `heads`, `rasa`, `layout`, `notes`, and the `hash` that the backbone alone would have in a
    teacher file. A RASA head in a file of its own has no `arch` and no `backbone`.

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
        return {"layout": "rasa", "rasa": _describe_rasa(rasa), "hash": hash_tensors(rasa)}
    found = recognise(content, origin, num_heads)
    return (description or {}) | {
        "arch": found.arch,
        "backbone": found.config,
        "heads": {name: _describe_head(head) for name, head in found.heads.items()},
        "rasa": _describe_rasa(found.rasa) if found.rasa else None,
        "layout": found.layout,
        "notes": found.notes,
        "hash": hash_tensors({f"backbone.{name}": tensor for name, tensor in found.backbone.items()}),
    }


def _describe_rasa(rasa: State) -> dict[str, int]:
    """Arguments of RASAHead."""
    return {"input_dim": next(iter(rasa.values())).shape[-1], "n_pos_layers": rasa_depth(rasa)}


def _describe_head(head: State) -> dict[str, Any]:
    prototypes = [len(tensor) for name, tensor in head.items() if name.endswith("weight_v")]
    return {"parameters": sum(tensor.numel() for tensor in head.values()), "prototypes": prototypes}
