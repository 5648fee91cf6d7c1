"""Files that are whole or absent, whatever moment a process dies at."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from franca.hub.checkpoint import write_atomically


def replace_text(path: Path, text: str) -> None:
    """Put ``text`` in the place of the file's content. Raises OSError; then the file is as it was."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def publish(saved: Path, public: Path) -> None:
    """Make ``public`` the same file as ``saved``, by a hard link where the file system has them. Raises OSError."""
    partial = public.with_name(f".{public.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(saved, partial)
    except OSError:
        shutil.copyfile(saved, partial)
    os.replace(partial, public)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of files, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
