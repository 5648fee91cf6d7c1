"""Published files in torch.hub's folder (`torch.hub.get_dir()`/checkpoints): fetched once, found from then on.

The environment variable FRANCA_HUB_URL names a mirror of the releases, for machines that can't reach GitHub:
`<FRANCA_HUB_URL>/<tag>/<file>`.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from franca.hub.archive import DamagedArchive, unpack
from franca.hub.download import DownloadError, download, locked
from franca.hub.registry import Published, RemoteFile

# How files begin: a .pth as a zip or, of before, as a pickle; an archive as gzip.
BEGINS = {".pth": (b"PK\x03\x04", b"\x80"), ".tar.gz": (b"\x1f\x8b",), ".tar.gz.part_aa": (b"\x1f\x8b",)}
RELEASES = "https://github.com/valeoai/Franca/releases/download"


def cache_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_there(name: str) -> bool:
    """Whether a file of that name lies in the cache."""
    return (cache_folder() / name).exists()


def address(file: RemoteFile) -> str:
    """Where the file is fetched from."""
    return f"{os.environ.get('FRANCA_HUB_URL', RELEASES).rstrip('/')}/{file.tag}/{file.name}"


def fetch(file: RemoteFile) -> Path:
    """One file of a release. Raises DownloadError."""
    target, argument = cache_folder() / file.name, "local_state_dict"
    if file.name.endswith("_rasa.pth"):
        argument = f"RASA_{argument}"
    advice = (
        f"Or fetch it by hand and put it at {target}, or name the place where it lies: {argument}=…; the environment "
        "variable FRANCA_HUB_URL names a mirror"
    )
    begins = next((begins for end, begins in BEGINS.items() if file.name.endswith(end)), ())
    return download(address(file), target, file.sha256, advice, begins)


def fetch_backbone(published: Published) -> Path:
    """The checkpoint of published weights, joined and unpacked where they come in pieces.

    Raises:
        DownloadError: a file can't be fetched.
        CheckpointError: the pieces don't make up an archive.
    """
    target = cache_folder() / published.name
    if not published.parts:
        return fetch(published.files[0])
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target) as alone:
            if not target.exists():
                parts = [_fetch_piece(file, published) for file in published.files]
                _unpack_fetched(parts, target, alone)
    return target


def _fetch_piece(piece: RemoteFile, published: Published) -> Path:
    """One of several files. Raises DownloadError, which says which there are."""
    try:
        return fetch(piece)
    except DownloadError as error:
        needed = ", ".join(file.name for file in published.files)
        raise DownloadError(f"{error}. By hand, all of these are needed: {needed}") from None


def unpacked(parts: Sequence[Path]) -> Path:
    """The checkpoint of a local archive, given by its pieces: unpacked into the cache, again when a piece has changed.

    Raises CheckpointError as `unpack`.
    """
    marks = [f"{part.name} {part.stat().st_size} {part.stat().st_mtime_ns}" for part in parts if part.exists()]
    archive = f"{parts[0].name.split('.')[0]}-{_digest(str(parts[0].resolve()))}-"
    target = cache_folder() / f"{archive}{_digest(*marks)}.pth"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target) as alone:
            if not target.exists():
                _unpack(parts, target, alone)
        for older in target.parent.iterdir():  # of this archive, before it changed
            if older.name.startswith(archive) and older.suffix == ".pth" and older != target:
                with suppress(OSError):
                    older.unlink()
    return target


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _unpack_fetched(parts: Sequence[Path], target: Path, alone: bool) -> None:
    """Unpack what lies in the cache, and remove it: all pieces when that is done, the damaged ones when it fails."""
    try:
        _unpack(parts, target, alone)
    except DamagedArchive as error:
        for part in error.culprits:
            part.unlink(missing_ok=True)
        names = ", ".join(part.name for part in error.culprits)
        raise DamagedArchive(f"{error}. Removed: {names}; call again to fetch it", error.culprits) from error
    for part in parts if alone else []:
        part.unlink()


def _unpack(parts: Sequence[Path], target: Path, alone: bool) -> None:
    """Unpack; where another process may be at it too, under a name of its own first."""
    scratch = target if alone else target.with_name(f"{target.name}.{os.getpid()}")
    unpack(parts, scratch)
    os.replace(scratch, target)
