"""What the lists drop goes, all else stays as it was: in shards with captions, and in folders of images."""

import os
import tarfile
from pathlib import Path

import pytest

from franca.data.preparation.apply import apply
from franca.data.preparation.errors import PreparationError
from franca.data.sources.folder import ImageFolder
from franca.data.sources.tars import TarFolder
from tests.data.preparation.test_embed import pack


def write_list(file: Path, names: list[str]) -> Path:
    file.write_text("".join(f"{name}\tsome other image\t0.9900\n" for name in names))
    return file


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.fixture
def shards(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRANCA_CACHE", str(tmp_path / "cache"))
    pack(images, tmp_path / "shards", 3)
    return tmp_path / "shards"


GONE = ["00000.tar/000000002.png", "00002.tar/000200000.png", "00002.tar/000200005.png"]


def test_samples_go_with_their_captions_and_all_others_stay(shards: Path, tmp_path: Path) -> None:
    first = write_list(tmp_path / "a.tsv", GONE[:2])
    second = write_list(tmp_path / "b.tsv", GONE[1:])
    report = apply(shards, [first, second], tmp_path / "out")
    assert (report["images"], report["kept"], report["dropped"]) == (20, 17, {"listed": 3})
    for shard in sorted(shards.iterdir()):
        gone = {name.partition("/")[2][:-4] for name in GONE if name.startswith(shard.name)}
        expected = {name: content for name, content in members(shard).items() if name[:-4] not in gone}
        assert members(tmp_path / "out/images" / shard.name) == expected
    assert len(TarFolder(str(tmp_path / "out/images"))) == 17


@pytest.mark.parametrize("parts", [0, 2])
def test_an_interrupted_step_goes_on_to_the_same_shards(parts: int, shards: Path, tmp_path: Path, stop_after) -> None:
    lists = [write_list(tmp_path / "a.tsv", GONE)]
    apply(shards, lists, tmp_path / "whole")
    with stop_after(parts):
        apply(shards, lists, tmp_path / "cut")
    apply(shards, lists, tmp_path / "cut")
    for shard in (tmp_path / "whole/images").iterdir():
        assert (tmp_path / "cut/images" / shard.name).read_bytes() == shard.read_bytes()


def test_a_shard_of_which_nothing_stays_is_left_out(shards: Path, tmp_path: Path) -> None:
    everything = [f"00001.tar/{name}" for name in members(shards / "00001.tar") if name.endswith(".png")]
    assert apply(shards, [write_list(tmp_path / "a.tsv", everything)], tmp_path / "out")["kept"] == 13
    assert sorted(os.listdir(tmp_path / "out/images")) == ["00000.tar", "00002.tar"]


def test_the_readable_rest_of_a_damaged_shard_is_copied(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (shards / "00002.tar").write_bytes(b"not found")
    report = apply(shards, [write_list(tmp_path / "a.tsv", GONE[:1])], tmp_path / "out")
    assert [damage.partition(":")[0] for damage in report["damaged"]] == ["00001.tar", "00002.tar"]
    assert 6 < report["kept"] < 13
    assert report["kept"] == len(TarFolder(str(tmp_path / "out/images")))


def test_a_folder_becomes_links_to_what_stays(images: Path, tmp_path: Path) -> None:
    report = apply(images, [write_list(tmp_path / "a.tsv", ["cats/3.png", "dogs/0.png"])], tmp_path / "out")
    assert (report["kept"], report["dropped"]) == (18, {"listed": 2})
    left = ImageFolder(str(tmp_path / "out/images"))
    assert len(left) == 18
    assert {"cats/3.png", "dogs/0.png"}.isdisjoint(left.name(number) for number in range(18))
    assert (tmp_path / "out/images/cats/1.png").read_bytes() == (images / "cats/1.png").read_bytes()
    assert len(ImageFolder(str(images))) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [("00009.tar/000000002.png", r"there is no shard '00009\.tar'"), ("no tab", r"is no dropped\.tsv")],
)
def test_a_list_about_other_images_is_refused(name: str, message: str, shards: Path, tmp_path: Path) -> None:
    file = write_list(tmp_path / "a.tsv", [name])
    if name == "no tab":
        file.write_text("000.png\n")
    with pytest.raises(PreparationError, match=message):
        apply(shards, [file], tmp_path / "out")
    with pytest.raises(PreparationError, match=r"nowhere\.tsv; give the dropped\.tsv"):
        apply(shards, [tmp_path / "nowhere.tsv"], tmp_path / "out")


def test_a_name_that_the_folder_does_not_hold_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"holds no 'cats/99\.png'"):
        apply(images, [write_list(tmp_path / "a.tsv", ["cats/99.png"])], tmp_path / "out")
