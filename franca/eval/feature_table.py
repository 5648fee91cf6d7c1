"""Features on disk: a row for every image, memory-mapped, whatever moment a process that writes them dies at.

A ``.npy`` file per kind of feature holds the rows, and one per process says of every image whether that process wrote
its row. Rows are forced to disk before their state, so that a kill loses one batch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from franca.distributed import rank
from franca.eval.errors import EvalError
from franca.files import replace_text, write_atomically

FORMAT = 2
MISSING, READY, UNREADABLE = 0, 1, 2  # state of an image
STORED_AS = {"fp32": (torch.float32, "<f4"), "fp16": (torch.float16, "<f2"), "bf16": (torch.bfloat16, "<i2")}
ORDER = "order"  # of the rows, where some were moved


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
        return self.exists() and not len(self.images_in(MISSING))

    def create(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the files, with room for all rows of these shapes. Raises EvalError where there is none."""
        try:
            for part, shape in shapes.items():
                open_memmap(self.file(part), "w+", np.dtype(self.code), (self.count, *shape)).flush()
                _reserve(self.file(part))
            for state in self._states():
                state.unlink()
            self.file(ORDER).unlink(missing_ok=True)
        except OSError as error:
            for part in shapes:
                self.file(part).unlink(missing_ok=True)
            raise EvalError(
                f"no room for features in {self.folder} ({error}): name another folder with --cache, or --store fp16"
            ) from error
        replace_text(self.folder / "about.json", json.dumps(self.about, indent=1) + "\n")

    def todo(self) -> NDArray[Any]:
        """Numbers of the images whose rows are not there, (n,)."""
        return np.flatnonzero(self._state() != READY)

    def images_in(self, state: int) -> NDArray[Any]:
        """Numbers of the images in that state, (n,)."""
        return np.flatnonzero(self._state() == state)

    def index(self) -> Tensor:
        """Numbers of the readable images, (n,) int64, rising but where rows were moved; after `pack`."""
        return torch.from_numpy(self._order()[: len(self.images_in(READY))])

    def write(self, numbers: NDArray[Any], features: Mapping[str, Tensor], name: Callable[[int], str]) -> None:
        """Features of these images onto disk, then that they are there. Raises EvalError for those not finite."""
        rows = self._order().argsort()[numbers] if self.file(ORDER).exists() else numbers
        for part, values in features.items():
            stored = values.cpu().to(self.dtype)
            finite = stored.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                image = name(int(numbers[int(finite.logical_not().nonzero()[0])]))
                raise EvalError(
                    f"features of {image} are not finite in {str(self.dtype).removeprefix('torch.')}: try --store fp32 "
                    "or --precision fp32, and check the weights"
                )
            mapped = self._map(part, "r+")
            mapped[rows] = stored.view(torch.int16).numpy() if self.code == "<i2" else stored.numpy()
            mapped.flush()
        self.mark(numbers, READY)

    def mark(self, numbers: NDArray[Any], state: int) -> None:
        """Say that these images are in that state, in this process's own file."""
        own = f"state-{rank()}"
        mode = "r+" if self.file(own).exists() else "w+"
        mapped = open_memmap(self.file(own), mode, np.dtype(np.uint8), (self.count,))
        mapped[numbers] = state
        mapped.flush()

    def explain(self, reasons: Mapping[int, str]) -> None:
        """Keep why images can't be read: {number: reason}, of this process."""
        replace_text(self.folder / f"unreadable-{rank()}.json", json.dumps(reasons, indent=1) + "\n")

    def reasons(self) -> list[str]:
        """Why images can't be read, by their numbers."""
        found: dict[int, str] = {}
        for file in self.folder.glob("unreadable-*.json"):
            found |= {int(number): reason for number, reason in json.loads(file.read_text(encoding="utf-8")).items()}
        return [found[number] for number in sorted(set(found) & set(self.images_in(UNREADABLE).tolist()))]

    def pack(self, parts: Iterable[str]) -> None:
        """Bring the rows of the readable images to the front: as many of the last ones move as are missing there.

        A kill during it changes nothing: what is overwritten are rows of images that can't be read.
        """
        order = self._order()
        ready = self._state()[order] == READY
        count = int(ready.sum())
        holes, movers = np.flatnonzero(~ready[:count]), count + np.flatnonzero(ready[count:])
        if not len(holes):
            return
        for part in parts:
            mapped = self._map(part, "r+")
            mapped[holes] = mapped[movers]
            mapped.flush()
        order[holes], order[movers] = order[movers], order[holes]
        write_atomically(self.file(ORDER), lambda file: np.save(file, order))

    def tensor(self, part: str) -> Tensor:
        """Rows of the readable images, in the order of `index`; after `pack`."""
        found = torch.from_numpy(open_memmap(self.file(part), "c")[: len(self.images_in(READY))])
        return found.view(torch.bfloat16) if self.code == "<i2" else found

    def file(self, part: str) -> Path:
        """Where the rows of a part lie."""
        return self.folder / f"{part}.npy"

    def _order(self) -> NDArray[np.int64]:
        """(count,): number of the image in each row."""
        file = self.file(ORDER)
        return np.load(file, allow_pickle=False) if file.exists() else np.arange(self.count)

    def _state(self) -> NDArray[np.uint8]:
        """(count,): what any process says of each image; that its row is there counts most."""
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
