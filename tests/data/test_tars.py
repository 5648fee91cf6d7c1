import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from franca.data.decode import decode_image
from franca.data.errors import EmptyFolder, MissingFolder, UnreadableImage
from franca.data.sources import tar_index
from franca.data.sources.tars import TarFolder

MakeTar = Callable[..., Path]


@pytest.fixture
def classes(tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]) -> Path:
    """Three tars of four photographs, as ImageNet-21K has them."""
    for number, label in enumerate(("n01", "n02", "n03")):
        names = [f"{label}_{place}.JPEG" for place in range(4)]
        make_tar(tmp_path / "tars" / f"{label}.tar", dict(zip(names, photographs[4 * number :], strict=False)))
    return tmp_path / "tars"


def _read_counter(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars whose headers are read from now on."""
    read: list[str] = []
    original = tar_index._read
    monkeypatch.setattr(tar_index, "_read", lambda path: read.append(path.name) or original(path))
    return read


def _names(source: TarFolder) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_images_and_labels_are_those_in_the_tars(classes: Path, photographs: list[bytes]) -> None:
    source = TarFolder(str(classes))
    assert source.classes == ["n01", "n02", "n03"]
    assert source.labels == [number // 4 for number in range(12)]
    assert _names(source)[3:5] == ["n01.tar/n01_3.JPEG", "n02.tar/n02_0.JPEG"]
    for index, content in enumerate(photographs):
        assert torch.equal(source.load(index), decode_image(content, "x.jpg"))


def test_only_image_files_count(tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]) -> None:
    image = photographs[0]
    members = {"notes.txt": b"text", "./._a.jpg": image, "a.JPG": image, "deep/down/" * 20 + "b.jpeg": image}
    path = make_tar(tmp_path / "one.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.JPG"
        archive.addfile(link)
    source = TarFolder(str(tmp_path))
    assert _names(source) == ["one.tar/a.JPG", "one.tar/" + "deep/down/" * 20 + "b.jpeg"]
    assert (source.classes, source.labels) == ([], None)


def test_nothing_is_written_for_members_that_lead_elsewhere(
    tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]
) -> None:
    make_tar(tmp_path / "in" / "evil.tar", {"../../out.jpg": photographs[0], "/tmp/out.jpg": photographs[1]})
    before = sorted(tmp_path.rglob("*"))
    assert TarFolder(str(tmp_path / "in")).load(1).shape[0] == 3
    assert sorted(tmp_path.rglob("*")) == before


class TestIndex:
    def test_headers_are_read_once(self, classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = _read_counter(monkeypatch)
        first = TarFolder(str(classes))
        assert sorted(read) == ["n01.tar", "n02.tar", "n03.tar"]
        second = TarFolder(str(classes))
        assert len(read) == 3
        assert _names(second) == _names(first)
        assert torch.equal(first.load(7), second.load(7))

    def test_a_changed_tar_is_read_again_and_no_other(
        self, classes: Path, make_tar: MakeTar, photographs: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        TarFolder(str(classes))
        make_tar(classes / "n02.tar", {"new.jpg": photographs[0], "newer.jpg": photographs[1]})
        make_tar(classes / "n00.tar", {"first.jpg": photographs[2]})
        (classes / "n03.tar").unlink()
        read = _read_counter(monkeypatch)
        source = TarFolder(str(classes))
        assert sorted(read) == ["n00.tar", "n02.tar"]
        fresh = [f"n01.tar/n01_{place}.JPEG" for place in range(4)]
        assert _names(source) == ["n00.tar/first.jpg", *fresh, "n02.tar/new.jpg", "n02.tar/newer.jpg"]
        for index, number in ((0, 2), (1, 0), (4, 3), (5, 0), (6, 1)):
            assert torch.equal(source.load(index), decode_image(photographs[number], "x.jpg"))

    def test_only_the_newest_is_kept(self, classes: Path, own_cache: Path, make_tar: MakeTar) -> None:
        TarFolder(str(classes))
        make_tar(classes / "n04.tar", {"a.jpg": b"no image"})
        TarFolder(str(classes))
        assert len([path for path in own_cache.iterdir() if path.is_dir()]) == 1

    @pytest.mark.parametrize("damage", ["notes.json", "offsets.npy", "text.npy"])
    def test_a_damaged_cache_is_made_anew(
        self, classes: Path, own_cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = _names(TarFolder(str(classes)))
        (file,) = own_cache.glob(f"*/{damage}")
        file.write_bytes(file.read_bytes()[:-20])
        read = _read_counter(monkeypatch)
        assert _names(TarFolder(str(classes))) == names
        assert len(read) == 3

    def test_without_a_place_to_keep_it_the_index_is_held(
        self, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("not a folder")
        monkeypatch.setenv("FRANCA_CACHE", str(tmp_path / "file" / "cache"))
        source = TarFolder(str(classes))
        assert len(source) == 12
        assert "FRANCA_CACHE" in caplog.text
        assert _names(pickle.loads(pickle.dumps(source))) == _names(source)

    def test_another_process_maps_the_kept_index(self, classes: Path) -> None:
        source = TarFolder(str(classes))
        content = pickle.dumps(source)
        assert len(content) < 1000 < len(_names(source)) * 1000
        assert torch.equal(pickle.loads(content).load(5), source.load(5))


class TestDamage:
    def test_a_tar_that_was_cut_off_keeps_its_first_images(
        self, classes: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = TarFolder(str(classes))
        end = int(whole._index.offsets[6]) + 100  # within the third image of n02
        os.truncate(classes / "n02.tar", end)
        with caplog.at_level(logging.WARNING):
            source = TarFolder(str(classes))
        assert _names(source) == [
            name for name in _names(whole) if name not in ("n02.tar/n02_2.JPEG", "n02.tar/n02_3.JPEG")
        ]
        assert "1 of 3 tars are damaged: n02.tar (cut off" in caplog.text

    def test_a_damaged_header_loses_one_image(self, classes: Path, caplog: pytest.LogCaptureFixture) -> None:
        header = int(TarFolder(str(classes))._index.offsets[5]) - 512
        with (classes / "n02.tar").open("r+b") as file:
            file.seek(header)
            file.write(b"\xff" * 300)
        names = _names(TarFolder(str(classes)))
        assert len(names) == 11
        assert "n02.tar/n02_1.JPEG" not in names
        assert "damaged before byte" in caplog.text

    def test_a_file_that_is_no_tar(self, classes: Path, caplog: pytest.LogCaptureFixture) -> None:
        (classes / "n02.tar").write_bytes(b"<html>not found</html>")
        source = TarFolder(str(classes))
        assert source.classes == ["n01", "n02", "n03"]
        assert set(source.labels or []) == {0, 2}
        assert "n02.tar" in caplog.text

    def test_a_mostly_unreadable_folder_is_refused(self, classes: Path) -> None:
        for name in ("n01.tar", "n03.tar"):
            (classes / name).write_bytes(b"")
        with pytest.raises(EmptyFolder, match=r"2 of 3 tar files hold no image.*n01\.tar \(.*empty"):
            TarFolder(str(classes))

    def test_a_tar_that_changes_while_it_is_read(self, classes: Path, make_tar: MakeTar) -> None:
        source = TarFolder(str(classes))
        make_tar(classes / "n03.tar", {"other.jpg": b"123"})
        with pytest.raises(UnreadableImage, match=r"n03\.tar/n03_0\.JPEG: .*changed since it was indexed"):
            source.load(8)
        (classes / "n02.tar").unlink()
        with pytest.raises(UnreadableImage, match="No such file"):
            source.load(4)

    def test_a_broken_image_is_named(self, tmp_path: Path, make_tar: MakeTar, photographs: list[bytes]) -> None:
        make_tar(tmp_path / "a.tar", {"good.jpg": photographs[0], "bad.jpg": b"\xff\xd8 no more"})
        with pytest.raises(UnreadableImage, match=r"^a\.tar/bad\.jpg: "):
            TarFolder(str(tmp_path)).load(1)


def test_more_tars_than_open_files(tmp_path: Path, make_tar: MakeTar, numbered: Callable[[int], bytes]) -> None:
    for number in range(70):
        make_tar(tmp_path / f"{number:02}.tar", {f"{number}.png": numbered(number)})
    source = TarFolder(str(tmp_path))
    assert [int(source.load(number)[1, 0, 0]) for number in (*range(70), 0)] == [*range(70), 0]
    assert len(source._files) <= 64


def test_what_is_wrong_with_the_path(tmp_path: Path, make_tar: MakeTar) -> None:
    with pytest.raises(MissingFolder, match=r"nowhere.*does not exist.*tar"):
        TarFolder(str(tmp_path / "nowhere"))
    with pytest.raises(EmptyFolder, match=r"data\.source=folder"):
        TarFolder(str(tmp_path))
    make_tar(tmp_path / "a.tar.gz", {"a.jpg": b"123"}, "w:gz")
    with pytest.raises(EmptyFolder, match=r"compressed.*data\.source=shards"):
        TarFolder(str(tmp_path))
