"""A checkpoint out of a .tar.gz, whole or in the pieces of `split`, without a copy of the joined archive."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from franca.files import write_atomically
from franca.hub.checkpoint import CheckpointError
from franca.hub.progress import Progress

CHUNK = 1 << 20


class DamagedArchive(CheckpointError):
    """An archive that can't be unpacked. `culprits`: its pieces that may be to blame."""

    def __init__(self, message: str, culprits: Sequence[Path]) -> None:
        super().__init__(message)
        self.culprits = list(culprits)


def unpack(parts: Sequence[Path], target: Path) -> Path:
    """Write the one .pth of the archive to `target`, atomically. Names inside the archive are never used as paths.

    Args:
        parts: the pieces in order; one for an archive in one file.
        target: the file to write; its folder must exist.

    Raises:
        CheckpointError: a piece is missing.
        DamagedArchive: a piece is truncated or damaged, with its name; or the archive doesn't hold exactly one regular
            .pth file.
        OSError: `target` can't be written.
    """
    _check_sizes(parts)
    with _Joined(parts) as joined:
        write_atomically(target, lambda file: _copy_checkpoint(joined, file))
    return target


class _Joined(io.RawIOBase):
    """The pieces as one stream."""

    def __init__(self, parts: Sequence[Path]) -> None:
        for part in parts:
            if not part.is_file():
                raise CheckpointError(f"{part} is missing: fetch it too, and put it beside {', '.join(_names(parts))}")
        self.parts = list(parts)
        self.number = -1
        self.file: io.FileIO | None = None
        self.progress = Progress(f"unpacking {parts[0].name}", sum(part.stat().st_size for part in parts))

    @property
    def reached(self) -> list[Path]:
        """The pieces that were read, the current one last."""
        return self.parts[: max(self.number, 0) + 1]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            count = self.file.readinto(buffer) if self.file else 0
            if count or self.number + 1 >= len(self.parts):
                self.progress.add(count)
                return count
            self.close_file()
            self.number += 1
            self.file = io.FileIO(self.parts[self.number])

    def close_file(self) -> None:
        if self.file:
            self.file.close()
            self.file = None

    def close(self) -> None:
        self.close_file()
        super().close()


def _copy_checkpoint(joined: _Joined, target: BinaryIO) -> None:
    """Copy the archive's .pth to `target` and read the archive to its end, so that its checksum is checked."""
    with joined.progress:
        try:
            with gzip.GzipFile(fileobj=io.BufferedReader(joined, CHUNK)) as stream:
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    _copy_member(archive, target, joined.parts)
                while stream.read(CHUNK):
                    pass
        except EOFError as error:
            last = joined.reached[-1]
            raise DamagedArchive(f"{last} is truncated: fetch it again", [last]) from error
        except (gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
            reached = joined.reached
            before = ", or a piece before it," if len(reached) > 1 else ""
            raise DamagedArchive(
                f"{reached[-1]}{before} is damaged or no .tar.gz ({error}): fetch it again", reached
            ) from error


def _copy_member(archive: tarfile.TarFile, target: BinaryIO, parts: Sequence[Path]) -> None:
    found = []
    for member in archive:
        name = member.name.rpartition("/")[2]
        if not name.endswith(".pth") or name.startswith("."):  # macOS puts `._x.pth` beside each x.pth
            continue
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            raise DamagedArchive(
                f"{parts[0]}: {member.name} is no regular file; an archive with links is not unpacked", parts
            )
        found.append(member.name)
        if len(found) > 1:
            several = ", ".join(found)
            raise DamagedArchive(f"{parts[0]} holds several checkpoints ({several}, …): unpack it by hand", parts)
        while block := content.read(CHUNK):
            target.write(block)
    if not found:
        raise DamagedArchive(f"{parts[0]} holds no .pth file", parts)


def _check_sizes(parts: Sequence[Path]) -> None:
    """`split` makes pieces of one size, but for the last, which is not larger: a smaller one has not come whole."""
    sizes = {part: part.stat().st_size for part in parts if part.is_file()}
    if len(sizes) < len(parts):
        return  # said where the missing piece is met
    whole = max(sizes.values())
    for part in parts[:-1]:
        if sizes[part] < whole:
            raise DamagedArchive(
                f"{part} is truncated: {sizes[part]} bytes, another piece has {whole}. Fetch it again", [part]
            )


def _names(parts: Sequence[Path]) -> list[str]:
    return [os.fspath(part.name) for part in parts if part.is_file()]
