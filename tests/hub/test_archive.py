"""Archives in pieces: one checkpoint comes out, whole, and nothing else is ever written."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from franca.hub import CheckpointError
from franca.hub.archive import unpack

CONTENT = random.Random(0).randbytes(200_000)


def archive(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A .tar.gz of files by name; a TarInfo stands for anything else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def split(content: bytes, folder: Path, count: int = 3) -> list[Path]:
    """As `split` does: pieces of one size, and a smaller last one."""
    size = -(-len(content) // count) + 10
    parts = [folder / f"weights.tar.gz.part_a{'abcdef'[number]}" for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * size : (number + 1) * size])
    return parts


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "weights.pth"


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    return split(archive({"readme.txt": b"text", "folder/some.pth": CONTENT}), tmp_path)


def nothing_written(target: Path) -> bool:
    return list(target.parent.iterdir()) == []


def test_pieces_give_the_checkpoint_under_the_given_name(parts, target) -> None:
    unpack(parts, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_an_archive_in_one_file(tmp_path, target) -> None:
    (tmp_path / "one.tar.gz").write_bytes(archive({"some.pth": CONTENT}))
    assert unpack([tmp_path / "one.tar.gz"], target).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_piece_is_named(parts, target, number) -> None:
    parts[number].unlink()
    with pytest.raises(CheckpointError, match=rf"part_a{'abc'[number]} is missing"):
        unpack(parts, target)
    assert nothing_written(target)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_piece_is_named(parts, target, number, share) -> None:
    content = parts[number].read_bytes()
    parts[number].write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"part_a{'abc'[number]} is truncated.*etch it again"):
        unpack(parts, target)
    assert nothing_written(target)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_piece_is_named(parts, target, number) -> None:
    content = bytearray(parts[number].read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):
        content[place] ^= 0x55
    parts[number].write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"part_a[abc](, or a piece before it,)? is damaged"):
        unpack(parts, target)
    assert nothing_written(target)


def test_a_file_that_is_no_archive(tmp_path, target) -> None:
    (tmp_path / "page.tar.gz").write_bytes(b"<html>Not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.tar\.gz.* is damaged or no \.tar\.gz"):
        unpack([tmp_path / "page.tar.gz"], target)


@pytest.mark.parametrize("name", ["../outside.pth", "/tmp/outside.pth", "a/../../outside.pth", "folder/in.pth"])
def test_names_inside_are_never_paths(tmp_path, target, name, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.tar.gz").write_bytes(archive({name: CONTENT}))
    before = set(tmp_path.parent.rglob("*"))
    unpack([tmp_path / "evil.tar.gz"], target)
    assert set(tmp_path.parent.rglob("*")) - before == {target}
    assert not os.path.exists("/tmp/outside.pth")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_checkpoint_must_be_a_regular_file(tmp_path, target, kind) -> None:
    (tmp_path / "evil.tar.gz").write_bytes(archive({"a": special("a.pth", kind, "/etc/passwd")}))
    with pytest.raises(CheckpointError, match=r"a\.pth is no regular file"):
        unpack([tmp_path / "evil.tar.gz"], target)
    assert nothing_written(target)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.pth": CONTENT, "b.pth": CONTENT}, r"holds several checkpoints \(a\.pth, b\.pth"),
        ({"a.txt": CONTENT}, r"holds no \.pth file"),
        ({}, r"holds no \.pth file"),
    ],
)
def test_an_archive_holds_exactly_one_checkpoint(tmp_path, target, members, reason) -> None:
    (tmp_path / "some.tar.gz").write_bytes(archive(members))
    with pytest.raises(CheckpointError, match=reason):
        unpack([tmp_path / "some.tar.gz"], target)
    assert nothing_written(target)


def test_what_macos_puts_beside_is_no_checkpoint(tmp_path, target) -> None:
    (tmp_path / "mac.tar.gz").write_bytes(archive({"folder/._some.pth": b"attributes", "folder/some.pth": CONTENT}))
    assert unpack([tmp_path / "mac.tar.gz"], target).read_bytes() == CONTENT


def test_an_earlier_file_survives_a_failure(parts, target) -> None:
    target.write_bytes(b"earlier")
    parts[2].write_bytes(parts[2].read_bytes()[:-50])
    with pytest.raises(CheckpointError):
        unpack(parts, target)
    assert target.read_bytes() == b"earlier"
