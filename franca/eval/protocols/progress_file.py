"""What a long evaluation has done so far, in a file, so that the same command goes on where it was stopped."""

import time
from pathlib import Path
from typing import Any

import torch

from franca.distributed import is_main
from franca.files import write_atomically

SECONDS = 30.0  # between two writes, at least


class ProgressFile:
    """Values by name, as `with` begins what an earlier process left, gone when `with` ends without an error.

    Only the first process reads and writes it. Values are tensors, numbers, text, and dictionaries and lists of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._written = time.monotonic()

    def __enter__(self) -> "ProgressFile":
        if is_main() and self.path.exists():
            self._values = torch.load(self.path, map_location="cpu", weights_only=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not is_main():
            return
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self._values:
            self._write()

    def get(self, name: str) -> Any:
        """The value that was kept last, None without any."""
        return self._values.get(name)

    @property
    def due(self) -> bool:
        """Whether the last write was long ago: what `keep` is given now reaches the disk at once."""
        return time.monotonic() - self._written >= SECONDS

    def keep(self, name: str, value: Any) -> None:
        """Remember a value, which must not change afterwards; else it reaches the disk when `with` ends by an error."""
        self._values[name] = value
        if self.due:
            self._write()

    def _write(self) -> None:
        write_atomically(self.path, lambda file: torch.save(self._values, file))
        self._written = time.monotonic()
