"""Files that are whole or absent, whatever moment a process dies at, and folders that one process writes to."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Call ``write`` on a temporary file beside ``path``, force it to disk, then rename it over ``path``.

    Raises:
        OSError: writing failed. Then ``path`` is as it was before, and the temporary file is gone.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch's zip writer reports a full disk as RuntimeError
        if isinstance(error, (OSError, RuntimeError)):
            raise OSError(
                f"{path} could not be written ({error}); check the folder and the free space. "
                "An earlier file of that name is untouched"
            ) from error
        raise
    sync(path.parent)


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
    """Force a file, or a folder's list of files, onto the disk; a folder only where the system opens one."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def held(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets go of it however the process ends.

    Raises BlockingIOError when another process holds it; with ``waiting``, calls that and waits instead. Where the file
    system has no locks nothing is held.
    """
    if sys.platform == "win32":
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            # Not flock: worker processes would inherit that, and hold it for some seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if waiting is None:
                raise BlockingIOError(f"another process holds {folder}") from error
            waiting()
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
