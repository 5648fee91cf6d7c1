"""One shard, from a file or a command, as the images in it: webdataset's layout, read from front to back.

Own code on Python's tarfile, because the webdataset library (1.0) cannot say where it stands in a shard, so a run
could not go on from there, and hands `pipe:` commands to a shell.
"""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import closing
from typing import BinaryIO, NamedTuple, cast

from franca.data.decode import EXTENSIONS
from franca.data.sources.shard_names import PIPE, command_of
from franca.data.sources.tar_members import Archive, Tell, open_archive, walk

MOST_BYTES = 1 << 30  # of one image file; a damaged header may claim any size
COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
LAST_WORDS = 300  # letters of what a failed command said


class ShardImage(NamedTuple):
    """One image file of a shard. end: byte of the (uncompressed) shard where the next sample starts."""

    name: str
    content: bytes
    end: int


def read_shard(shard: str, start: int, tell: Tell) -> Generator[ShardImage, None, None]:
    """The images of a shard from byte ``start`` (0, or the ``end`` of an image) on.

    A sample is what follows in a row under one name, up to the first dot (00042.jpg, 00042.json); its image is the
    first member whose ending is one of EXTENSIONS. ``tell`` is called with each damage; an exception never comes out.
    """
    try:
        if shard.startswith(PIPE):
            yield from _from_command(shard, start, tell)
        else:
            with open(shard, "rb") as file:
                plain = not file.peek(6).startswith(COMPRESSIONS)
                file.seek(start if plain else 0)
                yield from _samples(file, plain, start, tell)
    except Exception as error:  # missing, no tar, damaged compression
        tell(f"{type(error).__name__}: {error}")


def _from_command(shard: str, start: int, tell: Tell) -> Generator[ShardImage, None, None]:
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command_of(shard), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdout is not None
        problem = ""
        try:
            try:
                yield from _samples(cast(BinaryIO, process.stdout), False, start, tell)
            except Exception as error:  # the command's own words, if it has any, say more
                problem = f"{type(error).__name__}: {error}"
            while process.stdout.read(1 << 20):
                pass
            status = process.wait()
        finally:
            process.kill()
        if status:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-LAST_WORDS:]
            tell(f"the command failed with status {status}: {words}")
        elif problem:
            tell(problem)


def _samples(file: BinaryIO, seekable: bool, start: int, tell: Tell) -> Generator[ShardImage, None, None]:
    with closing(open_archive(file, seekable)) as archive:
        key, image, end = "", None, start
        for member in walk(archive, tell):
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if member.offset < start or not member.isreg() or member.issparse():
                continue
            folder, base = os.path.split(member.name)
            stem, _, ending = base.partition(".")
            if os.path.join(folder, stem) != key:
                if image:
                    yield ShardImage(*image, end=member.offset)
                key, image = os.path.join(folder, stem), None
            if image is None and stem and f".{ending.lower()}" in EXTENSIONS:
                content = _content(archive, member, tell)
                image = None if content is None else (member.name, content)
        if image:
            yield ShardImage(*image, end=end)


def _content(archive: Archive, member: tarfile.TarInfo, tell: Tell) -> bytes | None:
    if member.size > MOST_BYTES:
        tell(f"{member.name}: its header claims {member.size} bytes")
        return None
    opened = archive.extractfile(member)
    assert opened is not None
    try:
        return opened.read()
    except (tarfile.TarError, OSError, EOFError):
        return None  # cut off: reading on tells
