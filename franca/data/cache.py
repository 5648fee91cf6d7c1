"""What was found in a data set, kept on disk: arrays that every process maps into memory instead of holding a copy.

An entry is a folder of .npy files under a name that says what it was made from, written beside and renamed at its end:
there whole, or not at all.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

FORMAT = 1
NOTES = "notes.json"
Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """FRANCA_CACHE, else the folder "franca" where the system keeps caches (XDG_CACHE_HOME, ~/.cache)."""
    system = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FRANCA_CACHE") or f"{system}/franca").expanduser()


def mark(*facts: object) -> str:
    """Twelve letters that stand for the facts."""
    return hashlib.sha256(repr((FORMAT, facts)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def recall(name: str) -> tuple[Arrays, dict[str, Any]] | None:
    """The arrays, mapped from disk, and the notes of the newest entry of that name; None without a readable one."""
    for entry in _entries(name):
        try:
            notes = json.loads((entry / NOTES).read_text(encoding="utf-8"))
            return {key: _map(entry / f"{key}.npy", length) for key, length in notes["lengths"].items()}, notes
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be used (%s): what it holds is found anew", entry, error)
    return None


def keep(name: str, arrays: Arrays, notes: dict[str, Any]) -> None:
    """Writes an entry in place of earlier ones of that name; where the disk refuses, says so in the log."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _entries(name)
        new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
        try:
            _write(new, arrays, notes)
            os.rename(new, folder / f"{name}-{time.time_ns():020d}")
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        for entry in earlier:  # processes that have mapped their files keep them
            shutil.rmtree(entry, ignore_errors=True)
    except OSError as error:
        logger.warning("%s: %s. The next start takes as long as this one; FRANCA_CACHE names another", folder, error)


def _entries(name: str) -> list[Path]:
    """Newest first."""
    folder = cache_folder()
    try:
        names = os.listdir(folder)
    except OSError:  # none yet, or no place for one: keeping one tells
        return []
    return [folder / entry for entry in sorted(names, reverse=True) if entry.startswith(f"{name}-")]


def _write(folder: Path, arrays: Arrays, notes: dict[str, Any]) -> None:
    os.chmod(folder, 0o755)  # a temporary folder is private, a cache may be shared
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    lengths = {name: len(array) for name, array in arrays.items()}
    (folder / NOTES).write_text(json.dumps({**notes, "lengths": lengths}), encoding="utf-8")


def _map(path: Path, length: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r" if length else None, allow_pickle=False)  # nothing cannot be mapped
    if len(array) != length:
        raise ValueError(f"{path} holds {len(array)} entries, not {length}")
    return array
