"""Shards as they are read: what a path names, what a sample is, what is passed over, and commands."""

import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.data.errors import EmptyFolder, MissingFolder
from franca.data.sources.shard_names import expand_braces, shard_names
from franca.data.sources.shard_reader import ShardImage, read_shard
from franca.data.sources.shards import ShardConfig, Shards

MakeTar = Callable[..., Path]


def _read(shard: str | Path, start: int = 0) -> tuple[list[ShardImage], list[str]]:
    """The images of a shard, and what was wrong with it."""
    told: list[str] = []
    return list(read_shard(str(shard), start, told.append)), told


def _names(images: list[ShardImage]) -> list[str]:
    return [image.name for image in images]


class TestNames:
    @pytest.mark.parametrize(
        ("text", "expanded"),
        [
            ("a.tar", ["a.tar"]),
            ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
            ("{9..11}", ["9", "10", "11"]),
            ("{000..2}", ["000", "001", "002"]),
            ("{2..0}", ["2", "1", "0"]),
            ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
            ("{a/{0..1},b/{2..3}}.tar", ["a/0.tar", "a/1.tar", "b/2.tar", "b/3.tar"]),
            ("{single}{x,}", ["{single}x", "{single}"]),
        ],
    )
    def test_braces(self, text: str, expanded: list[str]) -> None:
        assert expand_braces(text) == expanded

    def test_a_brace_that_is_never_closed(self) -> None:
        with pytest.raises(ValueError, match=r"'a\{0\.\.9\.tar'.*never closed"):
            expand_braces("a{0..9.tar")

    def test_folders_and_patterns(self, make_shards: Callable[[int, int], Path]) -> None:
        folder = make_shards(3, 1)
        files = [str(folder / f"{number:03}.tar") for number in range(3)]
        assert shard_names(str(folder)) == files
        assert shard_names(f"{folder}/*.tar") == files
        assert shard_names(f"{folder}/00[12].tar") == files[1:]
        assert shard_names(f"{folder}/{{001..005}}.tar")[:2] == files[1:]  # missing ones are found out later

    def test_what_names_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(EmptyFolder, match=r"folder without shards.*\.tar"):
            shard_names(str(tmp_path))
        with pytest.raises(MissingFolder, match=r"names no shard.*\{00000\.\.00999\}"):
            shard_names(str(tmp_path / "*.tar"))

    def test_commands(self) -> None:
        assert shard_names("pipe:cat /x/{0..1}.tar") == ["pipe:cat /x/0.tar", "pipe:cat /x/1.tar"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("pipe:cat a.tar | gunzip", r"\| is for a shell.*executable file"),
            ("pipe:cat a.tar || true", "for a shell"),
            ("pipe:cat 'a.tar", "cannot be split"),
            ("pipe:", "no command"),
        ],
    )
    def test_commands_that_cannot_run(self, path: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            shard_names(path)


class TestSamples:
    def test_a_sample_is_what_follows_under_one_name(self, tmp_path: Path, make_tar: MakeTar) -> None:
        members = {
            "a/1.json": b"{}",
            "a/1.jpg": b"first",
            "a/1.png": b"second image of the same sample",
            "a/2.seg.png": b"a mask",
            "a/2.webp": b"image",
            "a/3.txt": b"no image",
            "b/3.JPEG": b"same name in another folder",
            "b/.jpg": b"hidden",
        }
        images, told = _read(make_tar(tmp_path / "x.tar", members))
        assert _names(images) == ["a/1.jpg", "a/2.webp", "b/3.JPEG"]
        assert images[0].content == b"first"
        assert told == []

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    @pytest.mark.parametrize("way", ["file", "command"])
    def test_reading_goes_on_from_the_end_of_any_image(
        self, tmp_path: Path, make_tar: MakeTar, photographs: list[bytes], mode: str, way: str
    ) -> None:
        members: dict[str, bytes] = {}
        for number, content in enumerate(photographs):
            members |= {f"{number:02}.jpg": content, f"{number:02}.txt": b"caption"}
        path = make_tar(tmp_path / "it's a shard", members, mode)
        shard = str(path) if way == "file" else f'pipe:cat "{path}"'
        images, told = _read(shard)
        assert [image.content for image in images] == photographs
        for place in (0, 5, 10, 11):
            assert _read(shard, images[place].end) == (images[place + 1 :], [])
        assert told == []


class TestDamage:
    @pytest.fixture
    def shard(self, tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]) -> Path:
        return make_tar(tmp_path / "x.tar", {f"{n}.jpg": content for n, content in enumerate(photographs[:6])})

    def _offset(self, shard: Path, place: int) -> int:
        """Where the header of an image stands."""
        return _read(shard)[0][place - 1].end if place else 0

    @pytest.mark.parametrize("where", [600, 100])  # within the pixels, within the header
    @pytest.mark.parametrize("way", ["", "pipe:cat "])
    def test_cut_off(self, shard: Path, where: int, way: str) -> None:
        os.truncate(shard, self._offset(shard, 4) + where)
        images, told = _read(f"{way}{shard}")
        assert _names(images) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
        assert len(told) == 1

    @pytest.mark.parametrize("place", [0, 3])
    @pytest.mark.parametrize("way", ["", "pipe:cat "])
    def test_a_damaged_header(self, shard: Path, place: int, way: str) -> None:
        with shard.open("r+b") as file:
            file.seek(self._offset(shard, place))
            file.write(b"\x00\xff" * 200)
        images, told = _read(f"{way}{shard}")
        assert _names(images) == [f"{n}.jpg" for n in range(6) if n != place]
        assert len(told) == 1
        assert "damaged before byte" in told[0]

    def test_a_header_that_claims_any_size(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo("huge.jpg")
        member.size = 1 << 40
        (tmp_path / "x.tar").write_bytes(member.tobuf() + b"abc")
        images, told = _read(tmp_path / "x.tar")
        assert images == []
        assert "claims 1099511627776 bytes" in told[0]

    @pytest.mark.parametrize(
        "content", [b"", b"<html>not found</html>", b"\x1f\x8b\x08 no gzip", bytes(range(256)) * 9]
    )
    def test_no_tar_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.tar").write_bytes(content)
        for way in ("", "pipe:cat "):
            images, told = _read(f"{way}{tmp_path}/x.tar")
            assert images == []
            assert told

    def test_missing(self, tmp_path: Path) -> None:
        images, told = _read(tmp_path / "none.tar")
        assert images == []
        assert "No such file" in told[0]

    def test_a_compressed_shard_that_was_cut_off(
        self, tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]
    ) -> None:
        path = make_tar(tmp_path / "x.tar", {f"{n}.jpg": c for n, c in enumerate(photographs)}, "w:gz")
        os.truncate(path, path.stat().st_size // 2)
        images, told = _read(path)
        assert 0 < len(images) < 12
        assert [image.content for image in images] == photographs[: len(images)]
        assert len(told) == 1


class TestCommands:
    def test_a_command_gets_its_words_and_no_shell(self, tmp_path: Path, make_tar: MakeTar) -> None:
        """What a shell would take for commands of its own stays part of the name."""
        path = make_tar(tmp_path / "$(touch pwned);x.tar", {"a.jpg": b"image"})
        images, told = _read(f'pipe:cat "{path}"')
        assert (_names(images), told) == (["a.jpg"], [])
        assert not Path("pwned").exists()

    def test_what_a_failed_command_said(self) -> None:
        program = "import sys; sys.exit('no such bucket')"
        images, told = _read(f'pipe:{sys.executable} -c "{program}"')
        assert images == []
        assert told == ["the command failed with status 1: no such bucket"]

    def test_a_command_that_fails_half_way(self, tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]) -> None:
        path = make_tar(tmp_path / "x.tar", {f"{n}.jpg": c for n, c in enumerate(photographs)})
        images, told = _read(f"pipe:head -c {path.stat().st_size // 2} {path}")
        assert 0 < len(images) < 12
        assert len(told) == 1

    def test_no_such_command(self) -> None:
        images, told = _read("pipe:there-is-no-such-command {x}")
        assert images == []
        assert "there-is-no-such-command" in told[0]

    def test_a_command_ends_when_nobody_reads_on(self, tmp_path: Path, make_tar: MakeTar) -> None:
        path = make_tar(tmp_path / "x.tar", {"a.jpg": b"image", "b.jpg": b"image"})
        mark = tmp_path / "pid"
        program = (
            f"import os, sys; open({str(mark)!r}, 'w').write(str(os.getpid())); "
            f"sys.stdout.buffer.write(open({str(path)!r}, 'rb').read()); "
            "[sys.stdout.buffer.write(bytes(1 << 16)) for _ in iter(int, 1)]"
        )
        reader = read_shard(f'pipe:{sys.executable} -c "{program}"', 0, lambda _: None)
        assert next(reader).name == "a.jpg"
        reader.close()
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)


class TestShards:
    def test_streams_are_no_more_than_shards(self, make_shards: Callable[[int, int], Path]) -> None:
        folder = str(make_shards(5, 2))
        assert Shards(folder).n_streams == 5
        assert Shards(folder, config=ShardConfig(streams=2)).n_streams == 2

    def test_without_one_readable_image_it_is_refused_at_once(self, tmp_path: Path, make_tar: MakeTar) -> None:
        make_tar(tmp_path / "a.tar", {"a.txt": b"text"})
        make_tar(tmp_path / "b.tar", {"a.jpg": b"no image"})
        with pytest.raises(EmptyFolder, match=r"names 3 shards.*3 tried.*a\.tar \(it holds no image\); .*b\.tar"):
            Shards(f"{tmp_path}/{{a,b,c}}.tar")

    def test_the_first_shards_may_be_missing(self, make_shards: Callable[[int, int], Path]) -> None:
        folder = make_shards(4, 2)
        (folder / "000.tar").unlink()
        (folder / "001.tar").write_bytes(b"")
        assert len(Shards(f"{folder}/{{000..003}}.tar").shards) == 4

    @pytest.mark.parametrize("name", ["streams", "buffer"])
    def test_bad_options_are_named(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"data\.shards\.{name}=0"):
            ShardConfig(**{name: 0})
