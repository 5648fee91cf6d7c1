"""Showing a log file while another process writes it."""

import sys
from contextlib import suppress
from pathlib import Path


class Tail:
    """Copies what is new in ``path`` to standard output at every :meth:`show`.

    It starts at the end of what is there already: a continued run appends to its log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """Copy what was written since the last call; a file that isn't there yet is waited for.

        What can't be shown, as the terminal is gone, is left out: the run goes on, or saves.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                new = file.read()
        except OSError:
            return
        self.position += len(new)
        with suppress(OSError):
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()


def last_lines(path: Path, count: int = 10) -> str:
    """The end of a text file, indented; "" where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-count:])
