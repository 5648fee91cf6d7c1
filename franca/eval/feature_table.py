"""Features on disk: a row for every image, memory-mapped, whatever moment a process that writes them dies at.

A ``.npy`` file per kind of feature holds the rows, and one per process says of every row whether that process wrote it.
Rows are forced to disk before their state, so that a kill loses one batch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from franca.distributed import rank
from franca.eval.errors import EvalError
from franca.files import replace_text

FORMAT = 2
MISSING, READY, UNREADABLE = 0, 1, 2  # state of a row
STORED_AS = {"fp32": (torch.float32, "<f4"), "fp16": (torch.float16, "<f2"), "bf16": (torch.bfloat16, "<i2")}
COPIED_AT_ONCE = 1024  # rows


class FeatureTable:
    """The folder of one question.

    Args:
        parent: of the folder.
        about: all that decides the rows, in plain types; ``images`` is their number, ``blocks`` how deep they go.
        stored_as: a key of STORED_AS.
    """

    def __init__(self, parent: Path, about: Mapping[str, Any], stored_as: str) -> None:
        self.about = {"format": FORMAT, "stored_as": stored_as, **about}
        self.folder = parent / hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.count, self.blocks = int(about["images"]), int(about["blocks"])
        self.dtype, self.code = STORED_AS[stored_as]

    def exists(self) -> bool:
        """Whether its files were made."""
        return (self.folder / "about.json").is_file()

    def is_whole(self) -> bool:
        """Whether every row was written, or can't be."""
        return self.exists() and not len(self.rows_in(MISSING))

    def create(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the files, with room for all rows of these shapes. Raises EvalError where there is none."""
        try:
            for part, shape in shapes.items():
                open_memmap(self.file(part), "w+", np.dtype(self.code), (self.count, *shape)).flush()
                _reserve(self.file(part))
            for state in self._states():
                state.unlink()
        except OSError as error:
            for part in shapes:
                self.file(part).unlink(missing_ok=True)
            raise EvalError(
                f"no room for features in {self.folder} ({error}): name another folder with --cache, or --store fp16"
            ) from error
        replace_text(self.folder / "about.json", json.dumps(self.about, indent=1) + "\n")

    def todo(self) -> NDArray[Any]:
        """Numbers of the rows that are not there, (n,)."""
        return np.flatnonzero(self._state() != READY)

    def rows_in(self, state: int) -> NDArray[Any]:
        """Numbers of the rows in that state, (n,)."""
        return np.flatnonzero(self._state() == state)

    def index(self) -> Tensor:
        """Numbers of the readable images, (n,) int64."""
        return torch.from_numpy(self.rows_in(READY))

    def write(self, rows: NDArray[Any], features: Mapping[str, Tensor], name: Callable[[int], str]) -> None:
        """Features onto disk, then that they are there. Raises EvalError for those that are not finite."""
        for part, values in features.items():
            stored = values.cpu().to(self.dtype)
            finite = stored.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                image = name(int(rows[int(finite.logical_not().nonzero()[0])]))
                raise EvalError(
                    f"features of {image} are not finite in {str(self.dtype).removeprefix('torch.')}: try --store fp32 "
                    "or --precision fp32, and check the weights"
                )
            mapped = self._map(part, "r+")
            mapped[rows] = stored.view(torch.int16).numpy() if self.code == "<i2" else stored.numpy()
            mapped.flush()
        self.mark(rows, READY)

    def mark(self, rows: NDArray[Any], state: int) -> None:
        """Say that these rows are in that state, in this process's own file."""
        own = f"state-{rank()}"
        mode = "r+" if self.file(own).exists() else "w+"
        mapped = open_memmap(self.file(own), mode, np.dtype(np.uint8), (self.count,))
        mapped[rows] = state
        mapped.flush()

    def explain(self, reasons: Mapping[int, str]) -> None:
        """Keep why images can't be read: {number: reason}, of this process."""
        replace_text(self.folder / f"unreadable-{rank()}.json", json.dumps(reasons, indent=1) + "\n")

    def reasons(self) -> list[str]:
        """Why images can't be read, by their numbers."""
        found: dict[int, str] = {}
        for file in self.folder.glob("unreadable-*.json"):
            found |= {int(number): reason for number, reason in json.loads(file.read_text(encoding="utf-8")).items()}
        return [found[number] for number in sorted(set(found) & set(self.rows_in(UNREADABLE).tolist()))]

    def leave_out(self, part: str) -> None:
        """Beside the rows of all images, a file of the readable ones alone, in their order."""
        rows, whole = self.rows_in(READY), self._map(part, "r")
        kept = self._readable(part)
        if kept.exists():
            return
        partial = kept.with_suffix(".partial")
        target = open_memmap(partial, "w+", whole.dtype, (len(rows), *whole.shape[1:]))
        for start in range(0, len(rows), COPIED_AT_ONCE):
            target[start : start + COPIED_AT_ONCE] = whole[rows[start : start + COPIED_AT_ONCE]]
        target.flush()
        for stale in self.folder.glob(f"{part}.readable-*.npy"):
            stale.unlink()
        partial.replace(kept)

    def tensor(self, part: str) -> Tensor:
        """Rows of the readable images, in their order."""
        file = self._readable(part) if len(self.rows_in(UNREADABLE)) else self.file(part)
        found = torch.from_numpy(open_memmap(file, "c"))
        return found.view(torch.bfloat16) if self.code == "<i2" else found

    def file(self, part: str) -> Path:
        """Where the rows of a part lie."""
        return self.folder / f"{part}.npy"

    def _readable(self, part: str) -> Path:
        """Named by the number of its rows: readable images only ever become more."""
        return self.folder / f"{part}.readable-{len(self.rows_in(READY))}.npy"

    def _state(self) -> NDArray[np.uint8]:
        """(count,): what any process says of each row; that it is there counts most."""
        whole = np.zeros(self.count, dtype=np.uint8)
        for file in self._states():
            state = np.load(file, allow_pickle=False)
            whole = np.where((whole == READY) | (state == MISSING), whole, state)
        return whole

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.npy"))

    def _map(self, part: str, mode: Any) -> "np.memmap[Any, Any]":
        return open_memmap(self.file(part), mode)


def _reserve(file: Path) -> None:
    """Take the file's space on disk now: writing to a mapped page of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
