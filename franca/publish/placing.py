"""How files and folders come to their places: linked or copied, and all of them or none."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from franca.files import sync
from franca.hub.progress import Progress
from franca.publish.errors import PublishError

BLOCK = 1 << 22
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"


def place(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, by a hard link, or a copy where there are none. Raises OSError."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    size = source.stat().st_size
    with source.open("rb") as read, target.open("xb") as written, Progress(f"copying {source.name}", size) as progress:
        while block := read.read(BLOCK):
            written.write(block)
            progress.add(len(block))
        written.flush()
        os.fsync(written.fileno())


@contextmanager
def staged(output: Path, force: bool) -> Iterator[Path]:
    """A new folder beside ``output``, which takes its name and place if all goes well and is gone otherwise.

    Args:
        output: a folder that isn't there.
        force: it may be there, where it is empty or a release and nothing else.

    Raises:
        PublishError: there is something that must not be replaced.
        OSError: the folder can't be made or renamed; what was there is there.
    """
    staging, earlier = (output.with_name(f".{output.name}.{end}") for end in ("partial", "earlier"))
    if earlier.exists() and not output.exists():  # killed between two renames
        os.replace(earlier, output)
    _refuse_existing(output, force)
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _exchange(staging, output, earlier)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _exchange(staging: Path, output: Path, earlier: Path) -> None:
    for folder in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
        sync(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        os.replace(output, earlier)
    try:
        os.replace(staging, output)
    except OSError:
        if earlier.exists():
            os.replace(earlier, output)
        raise
    sync(output.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def _refuse_existing(output: Path, force: bool) -> None:
    if not os.path.lexists(output):
        return
    if not force:
        raise PublishError(f"{output} exists; name another folder, or add --force to replace a release")
    if output.is_symlink() or not output.is_dir():
        raise PublishError(f"{output} is no folder: name another place for the release")
    there = {str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir()}
    strange = sorted(there - _released(output))
    if strange:
        raise PublishError(
            f"{output} holds {strange[0]}, which no release of this command put there, so --force does not replace it: "
            "name another folder, or remove that one"
        )


def _released(output: Path) -> set[str]:
    """The files that the release in a folder consists of; none where it holds no release."""
    try:
        files = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {file["path"] for file in files} | {MANIFEST, SUMS}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def explained(error: OSError, output: Path) -> str:
    """One line for a person whose release could not be written."""
    advice = (
        "check the free space" if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else "nothing was changed"
    )
    return f"{output} could not be written: {error}; {advice}"
