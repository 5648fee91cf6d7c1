"""Teacher files that describe themselves.

A teacher file is ``torch.save({"teacher": {name: tensor}, "description": {...}})``. Names are ``backbone.*``,
``dino_head.*`` and ``ibot_head.*``; the description holds plain types only, so that ``weights_only=True`` reads it:

    format, arch, backbone (constructor arguments), heads, stage, step, images_seen, data, mean, std,
    initialised_from (name, hash and heads, where the run began with a file), hash (sha256 of the tensors), franca and
    torch (versions)
"""

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from franca import __version__
from franca.files import write_atomically

FORMAT = 1
ROWS_SHOWN = 12


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file, what is wrong and what to do."""


def save_teacher(path: str | Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Any]:
    """Write a teacher file atomically; an earlier file of that name survives any failure.

    Args:
        path: file to write; its folder must exist.
        state: tensors named ``backbone.*`` and, where there are heads, ``dino_head.*`` and ``ibot_head.*``.
        description: plain types; needs ``arch`` and ``backbone``. Format, hash and versions are added here.

    Returns:
        the description as written.

    Raises:
        CheckpointError: the description lacks a key or holds something that isn't a plain type.
        OSError: the file can't be written (no such folder, full disk).
    """
    content = _teacher_content(state, description)
    write_atomically(path, lambda file: torch.save(content, file))
    return content["description"]


def teacher_writer(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> Callable[[BinaryIO], None]:
    """What writes such a file, for `write_atomically`. Arguments and CheckpointError as save_teacher, raised here."""
    content = _teacher_content(state, description)
    return lambda file: torch.save(content, file)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy ``state`` into ``module``; names and shapes must agree exactly.

    Raises:
        CheckpointError: a short table of names that are missing, unexpected, or of another shape. Nothing was copied.
    """
    rows = mismatches(module, state)
    if rows:
        more = [f"… and {len(rows) - ROWS_SHOWN} more"] if len(rows) > ROWS_SHOWN else []
        table = "\n  ".join(rows[:ROWS_SHOWN] + more)
        raise CheckpointError(f"{origin} is of another architecture than {type(module).__name__} as built:\n  {table}")
    module.load_state_dict(dict(state))


def mismatches(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from fitting ``module``, a line each: names missing, unexpected, or of another shape."""
    wanted = module.state_dict()
    rows = [f"missing     {name} {tuple(wanted[name].shape)}" for name in wanted if name not in state]
    rows += [f"unexpected  {name} {tuple(state[name].shape)}" for name in state if name not in wanted]
    rows += [
        f"shape       {name}: file {tuple(state[name].shape)}, model {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    return rows


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, in alphabetical order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            # read in place: numpy would be a second dependency, and knows no bfloat16
            digest.update((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr()))
    return digest.hexdigest()


def check_format(description: Mapping[str, Any], origin: str) -> None:
    """Raise CheckpointError where a later version wrote the description, or nothing that says which."""
    found = description.get("format", FORMAT)
    if not isinstance(found, int):
        raise CheckpointError(f"{origin} is damaged: its description says format {found!r}, which is no number")
    if found > FORMAT:
        raise CheckpointError(
            f"{origin} has format {found}, written by franca {description.get('franca')}; this version "
            f"({__version__}) reads format {FORMAT}: upgrade it"
        )


def _teacher_content(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("arch", "backbone"):
        if key not in description:
            raise CheckpointError(f"the description has no {key!r}: load_model could not rebuild the model")
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    written = {
        **_plain(description, "description"),
        "format": FORMAT,
        "hash": hash_tensors(tensors),
        "franca": __version__,
        "torch": str(torch.__version__),
    }
    return {"teacher": tensors, "description": written}


def _plain(value: Any, where: str) -> Any:
    """``value`` with mappings as dict and sequences as list, or an error that says where it isn't a plain type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str):
        return str(value)  # a subclass of str (torch's version number is one) would not pass weights_only=True
    if value is None or isinstance(value, (int, float)):
        return value
    raise CheckpointError(f"{where} is {type(value).__name__}, not a plain type (str, number, bool, None, list, dict)")
