"""The members of a tar file, one after the other, past whatever is damaged.

Python's own reader ends in silence at a damaged header in the middle of an archive, or takes it for the end; here
reading goes on at the next header that can be read, and each damage is told.
"""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, Self

from franca.data.decode import EXTENSIONS

Tell = Callable[[str], None]


class Archive(tarfile.TarFile):
    """A tar file that knows whether it passed over headers it could not read, and whether it met its end mark."""

    members: list[tarfile.TarInfo]
    lost_header = ""
    ended = False


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, Archive)
        try:
            member = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            archive.ended = archive.ended or kind == "EOFHeaderError"
            if kind in ("InvalidHeaderError", "TruncatedHeaderError"):
                archive.lost_header = str(error)
            raise
        archive.ended = False
        return member


def open_archive(file: BinaryIO, seekable: bool) -> Archive:
    """An archive that starts where ``file`` stands: uncompressed and seekable, or any compression, read through.

    Raises tarfile.TarError and others when the file is empty or its compression is damaged.
    """
    mode: Literal["r:", "r|*"] = "r:" if seekable else "r|*"
    opened = Archive.open(fileobj=file, mode=mode, ignore_zeros=True, tarinfo=_Member)
    assert isinstance(opened, Archive)
    return opened


def walk(archive: Archive, tell: Tell) -> Iterator[tarfile.TarInfo]:
    """Every member whose header can be read, in order; ``tell`` is called with each damage on the way."""
    while True:
        try:
            member = archive.next()
        except Exception as error:  # damaged headers raise nearly anything
            tell(f"cut off or damaged at byte {archive.offset} ({type(error).__name__}: {error})")
            return
        if archive.lost_header:
            tell(f"damaged before byte {archive.offset if member is None else member.offset} ({archive.lost_header})")
            archive.lost_header = ""
            archive.ended = archive.ended or member is None  # told already
        archive.members = []  # else every header stays in memory
        if member is None and not archive.ended:
            tell(f"cut off at byte {archive.offset}: it lacks the mark of an archive's end")
        if member is None:
            return
        yield member


def is_image(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file that is named like an image and not hidden."""
    name = PurePosixPath(member.name).name
    return member.isreg() and not member.issparse() and not name.startswith(".") and name.lower().endswith(EXTENSIONS)
