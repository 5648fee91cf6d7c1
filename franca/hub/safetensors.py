"""The safetensors format, read and written with torch alone.

A file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, place of the bytes), and
the tensors' bytes one after the other: https://github.com/huggingface/safetensors#format.
"""

import ctypes
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from franca.hub.checkpoint import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100 << 20  # the library's own limit


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped from the file rather than copied, and the file's own notes (`__metadata__`).

    Raises:
        CheckpointError: truncated, or no such file; a type that is not in DTYPES.
    """
    header, start = _read_header(path)
    notes = header.pop("__metadata__", None) or {}
    if not isinstance(notes, dict):
        raise CheckpointError(f"{path} can't be read: damaged, its header's __metadata__ is no table")
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)[start:]
    try:
        unknown = {entry["dtype"] for entry in header.values()} - DTYPES.keys()
        if unknown:
            raise CheckpointError(
                f"{path} can't be read: it holds tensors of type {', '.join(sorted(unknown))}; save it as one of "
                f"{', '.join(DTYPES)}"
            )
        return {name: _tensor(content, entry) for name, entry in header.items()}, notes
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} can't be read: truncated, or a damaged safetensors header ({error})") from error


def write(tensors: Mapping[str, Tensor], notes: Mapping[str, str], file: BinaryIO) -> None:
    """Write tensors and notes to an open file.

    Raises:
        CheckpointError: a tensor's type has no place in the format.
        OSError: writing failed.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    # The widest types first: then each tensor lies at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        if tensor.dtype not in names:
            raise CheckpointError(f"{name} is {tensor.dtype}, which safetensors files as written here can't hold")
        place = [end, end + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        end = place[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        whole = tensor.detach().cpu().contiguous()
        if whole.numel():
            file.write((ctypes.c_ubyte * whole.nbytes).from_address(whole.data_ptr()))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and where the tensors' bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, path.stat().st_size):
            raise CheckpointError(
                f"{path} ({path.stat().st_size} bytes) can't be read: truncated, or no safetensors file"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("the header is no table")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: truncated, or no safetensors file ({error})") from error
    return header, 8 + length


def _tensor(content: Tensor, entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if not 0 <= begin <= end <= len(content) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} of {len(content)} for shape {shape} of {dtype}")
    data = content[begin:end]
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype).view(shape)
