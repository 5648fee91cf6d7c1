"""Large folders: what was listed is kept, and only what has changed is listed again."""

import os
import time
from pathlib import Path

import pytest

from franca.data.sources import listing
from franca.data.sources.listing import list_images
from franca.data.sources.names import Names

LONG_AGO = time.time_ns() - 3600 * 10**9


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "KEPT_FROM", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images in three folders that were made long ago."""
    for label in ("a", "b", "b/c ü"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}\n.JPEG").write_bytes(b"")
    _settle(tmp_path)
    return tmp_path


def _settle(root: Path) -> None:
    for place in (root, *root.rglob("*")):
        if place.is_dir():
            os.utime(place, ns=(LONG_AGO, LONG_AGO - len(list(place.iterdir()))))


def _folders_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = listing._read
    monkeypatch.setattr(
        listing, "_read", lambda place, *rest: read.append(os.path.basename(place)) or original(place, *rest)
    )
    return read


def test_an_unchanged_folder_is_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list_images(str(folder))
    assert first == sorted(f"{label}/{number}\n.JPEG" for label in ("a", "b", "b/c ü") for number in range(3))
    read = _folders_read(monkeypatch)
    assert list_images(str(folder)) == first
    assert read == []


def test_only_changed_folders_are_listed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list_images(str(folder))
    (folder / "b" / "new.png").write_bytes(b"")
    (folder / "a" / "0\n.JPEG").unlink()
    (folder / "d").mkdir()
    (folder / "d" / "x.png").write_bytes(b"")
    _settle(folder)
    read = _folders_read(monkeypatch)
    second = list_images(str(folder))
    assert second == sorted({*first, "b/new.png", "d/x.png"} - {"a/0\n.JPEG"})
    assert sorted(read) == sorted([folder.name, "a", "b", "d"]) or sorted(read) == sorted(["", "a", "b", "d"])
    read.clear()
    assert list_images(str(folder)) == second
    assert read == []


def test_a_folder_that_changed_just_now_is_not_trusted(folder: Path) -> None:
    """Two changes within one tick of the clock leave the same time."""
    list_images(str(folder))
    (folder / "a" / "x.png").write_bytes(b"")
    now = os.stat(folder / "a").st_mtime_ns
    assert "a/x.png" in list_images(str(folder))
    (folder / "a" / "y.png").write_bytes(b"")
    os.utime(folder / "a", ns=(now, now))
    assert "a/y.png" in list_images(str(folder))


def test_what_lies_behind_a_link_is_looked_at_every_time(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "a" / "linked.png").symlink_to(elsewhere / "late.png")
    _settle(folder)
    assert "a/linked.png" not in list_images(str(folder))
    (elsewhere / "late.png").write_bytes(b"")
    assert "a/linked.png" in list_images(str(folder))


def test_other_folders_have_listings_of_their_own(folder: Path) -> None:
    assert len(list_images(str(folder))) == 9
    assert len(list_images(str(folder / "b"))) == 6
    assert len(list_images(str(folder))) == 9


def test_small_folders_are_not_kept(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "KEPT_FROM", 10)
    list_images(str(folder))
    assert list(own_cache.iterdir()) == []


class TestNames:
    def test_names_come_back(self) -> None:
        written = ["a", "", "ü/x\n", os.fsdecode(b"\xff.jpg")]
        names = Names.of(written)
        assert [names[place] for place in range(len(names))] == written

    def test_parts_and_joins(self) -> None:
        names = Names.of(["a", "bb", "ccc", "dddd"])
        joined = Names.join([names.part(2, 4), Names.of([]), names.part(0, 1)])
        assert [joined[place] for place in range(len(joined))] == ["ccc", "dddd", "a"]
        assert len(Names.join([])) == 0
