import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from franca.data.errors import DataError, EmptyFolder, MissingFolder
from franca.data.sources.folder import ImageFolder


def _images(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path, format="png")


def _names(source: ImageFolder) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_finds_images_at_every_depth_in_sorted_order(tmp_path: Path) -> None:
    _images(tmp_path, "b.png", "a/z.JPG", "a/b/c/deep.Jpeg", "c.webp", "a.png", "ä/ü.png")
    for other in ("notes.txt", "a/labels.csv", "noextension", "png"):
        (tmp_path / other).write_text("no image")
    source = ImageFolder(str(tmp_path))
    assert _names(source) == sorted(["b.png", "a/z.JPG", "a/b/c/deep.Jpeg", "c.webp", "a.png", "ä/ü.png"])
    assert [source.load(i)[0, 0, 0].item() for i in range(len(source))] == [4, 2, 1, 0, 3, 5]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    _images(tmp_path, "seen.png", ".hidden.png", ".cache/thumbnail.png", "a/._resource.png")
    assert _names(ImageFolder(str(tmp_path))) == ["seen.png"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    _images(root, "own.png", "a/inner.png")
    _images(elsewhere, "far.png")
    (root / "to_elsewhere").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "a" / "up").symlink_to(root)
    (root / "linked.png").symlink_to(root / "own.png")
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "itself").symlink_to(root / "itself")
    assert _names(ImageFolder(str(root))) == ["a/inner.png", "linked.png", "own.png", "to_elsewhere/far.png"]


def test_a_folder_reached_twice_goes_by_its_first_name(tmp_path: Path) -> None:
    _images(tmp_path / "elsewhere", "far.png")
    (tmp_path / "root").mkdir()
    for name in "hbgaecfd":
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    assert _names(ImageFolder(str(tmp_path / "root"))) == ["a/far.png"]


def test_folders_named_like_images_are_folders(tmp_path: Path) -> None:
    _images(tmp_path, "photos.jpg/inner.png")
    assert _names(ImageFolder(str(tmp_path))) == ["photos.jpg/inner.png"]


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode here")
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    _images(tmp_path, "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert ImageFolder(str(tmp_path)).load(0).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["cat/1.png", "cat/deep/2.png", "dog/3.png"], ["cat", "dog"], [0, 0, 1]),
        (["1.png", "2.png"], [], None),
        (["cat/1.png", "dog/2.png", "loose.png"], [], None),
        (["all/1.png", "all/2.png"], [], None),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/2.png"], [], None),
        (["cat/1.png", "train/2.png"], ["cat", "train"], [0, 1]),
    ],
    ids=["class folders", "flat", "loose files", "one folder", "split folders", "a class named train"],
)
def test_labels(tmp_path: Path, names: list[str], classes: list[str], labels: list[int] | None) -> None:
    _images(tmp_path, *names)
    source = ImageFolder(str(tmp_path))
    assert (source.classes, source.labels) == (classes, labels)


def test_a_split_given_by_path_has_its_labels(tmp_path: Path) -> None:
    _images(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png")
    assert ImageFolder(str(tmp_path / "train")).classes == ["cat", "dog"]


def test_channels(tmp_path: Path) -> None:
    _images(tmp_path, "1.png")
    assert ImageFolder(str(tmp_path), channels=1).load(0).shape == (1, 8, 8)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _images(tmp_path, "photos/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _names(ImageFolder("~/photos")) == ["1.png"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFolder, match=r"data\.path='.*nowhere' does not exist"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(MissingFolder, match=r"data\.path='' does not exist"):
        ImageFolder("")
    _images(tmp_path, "1.png")
    with pytest.raises(MissingFolder, match=r"1\.png' is a file"):
        ImageFolder(str(tmp_path / "1.png"))


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(EmptyFolder, match=r"data\.path=.*holds no image: no file ends in .*\.jpg .*\.png"):
        ImageFolder(str(tmp_path))


def test_folder_of_broken_images(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no image")
    with pytest.raises(EmptyFolder, match=r"holds 3 files .* none of the 3 tried can be read: 0\.jpg \(.*identify"):
        ImageFolder(str(tmp_path))


def test_one_good_image_is_enough(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_text("no image")
    _images(tmp_path, "1.png")
    assert len(ImageFolder(str(tmp_path))) == 2


def test_many_broken_files_at_the_head_of_the_list_are_no_verdict(tmp_path: Path) -> None:
    """A share of broken files stops a run while it reads; a folder is refused only without one usable image."""
    for i in range(150):
        (tmp_path / f"a{i:03}.jpg").write_bytes(b"")
    _images(tmp_path, *(f"b{i:03}.png" for i in range(60)))
    assert len(ImageFolder(str(tmp_path))) == 210


def test_a_long_folder_of_broken_images_is_not_read_whole(tmp_path: Path) -> None:
    for i in range(1001):
        (tmp_path / f"{i:04}.jpg").write_bytes(b"")
    with pytest.raises(EmptyFolder, match=r"holds 1001 files .* none of the 91 tried can be read: 0000\.jpg"):
        ImageFolder(str(tmp_path))


def test_real_folders(data_dir: Path) -> None:
    """Whatever the folder holds: every image gets a number, and class folders under train/ become labels."""
    splits = sorted(data_dir.glob("*/train"))
    assert splits
    for folder in splits:
        source = ImageFolder(str(folder))
        assert source.labels is not None
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        assert source.classes == names
        for index in range(0, len(source), max(1, len(source) // 5)):
            assert source.name(index).split("/")[0] == source.classes[source.labels[index]]
            assert source.load(index).shape[0] == 3


def test_a_subfolder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent gap in the data would be worse; root may read everything, so the refusal is simulated."""
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(place: str) -> Iterator[os.DirEntry[str]]:
        if "locked" in place:
            raise PermissionError(place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"locked.*may not be read"):
        ImageFolder(str(tmp_path))
