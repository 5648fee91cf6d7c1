"""ImageNet-1K and the sets that test its classifiers: numbers, candidates, label sets, and truths of flat folders."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from franca.eval.datasets import open_split
from franca.eval.datasets.imagenet import wnids
from franca.eval.errors import EvalError
from tests.eval.datasets.trees import as_json, class_folders, picture, text

FIRST, SECOND, LAST = wnids()[0], wnids()[1], wnids()[-1]


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_a_thousand_wnids_in_order() -> None:
    assert len(wnids()) == 1000
    assert list(wnids()) == sorted(set(wnids()))
    assert (FIRST, LAST) == ("n01440764", "n15075141")


def test_the_wnids_are_those_that_others_use() -> None:
    pytest.importorskip("timm")
    assert list(wnids()) == (files("timm.data._info") / "imagenet_synsets.txt").read_text().split()


@pytest.mark.parametrize("inside", [".", "ILSVRC/Data/CLS-LOC"])
def test_wnid_folders_count_by_the_thousand_not_by_what_is_there(tmp_path: Path, inside) -> None:
    for split in ("train", "val"):
        class_folders(tmp_path / inside / split, {FIRST: 1, LAST: 2}, ".JPEG")
    for role in ("train", "test"):
        source = open_split(f"imagenet:{tmp_path}", None, role, "classification").source
        assert source.labels == [0, 999, 999]
        assert source.classes == list(wnids())
        assert source.load(0).shape == (3, 2, 2)


def test_a_folder_that_is_no_wnid(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {FIRST: 1, "goldfish": 2})
    with pytest.raises(EvalError, match=r"holds 2 images in no folder of one of the 1000 wnids: goldfish/0.png"):
        open_split(f"imagenet:{tmp_path}", None, "train", "classification")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for number in (2, 1, 3):
        picture(tmp_path / "val" / val_name(number))
    return tmp_path


def devkit(root: Path) -> None:
    """The devkit's numbers are not in the order of the wnids, and its table goes on with inner nodes."""
    savemat = pytest.importorskip("scipy.io").savemat
    data = root / "ILSVRC2012_devkit_t12/data"
    text(data / "ILSVRC2012_validation_ground_truth.txt", "1", "3", "2")
    dtype = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(1, LAST), (2, FIRST), (3, SECOND), (1001, "n00001740")]
    synsets = np.array([(number, wnid, "w", "g", 0) for number, wnid in rows], dtype)
    savemat(data / "meta.mat", {"synsets": synsets})


def kaggle(root: Path) -> None:
    rows = [(3, FIRST), (1, LAST), (2, SECOND)]
    text(
        root / "LOC_val_solution.csv",
        "ImageId,PredictionString",
        *(f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for number, wnid in rows),
    )


def caffe(root: Path) -> None:
    text(root / "val.txt", f"{val_name(1)} 999", f"{val_name(2)} 1", f"{val_name(3)} 0")


@pytest.mark.parametrize("write", [devkit, kaggle, caffe])
def test_a_flat_folder_needs_a_list_of_truths(flat: Path, write) -> None:
    write(flat)
    source = open_split(f"imagenet:{flat}", None, "test", "classification").source
    assert [source.name(index) for index in range(3)] == [val_name(number) for number in (1, 2, 3)]
    assert source.labels == [999, 1, 0]


def test_a_flat_folder_without_truths(flat: Path) -> None:
    with pytest.raises(EvalError, match=r"without wnid folders, and there is none of ILSVRC2012_devkit_t12/.*val.txt"):
        open_split(f"imagenet:{flat}", None, "test", "classification")


def test_truths_that_say_too_little(flat: Path) -> None:
    text(flat / "val.txt", f"{val_name(1)} 999")
    with pytest.raises(EvalError, match=r"val.txt says nothing of 2 images: ILSVRC2012_val_00000002.JPEG"):
        open_split(f"imagenet:{flat}", None, "test", "classification")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("val.txt", "one two three"),
        ("val.txt", f"{val_name(1)} x"),
        ("LOC_val_solution.csv", "a,b"),
        ("val.txt", "\xff"),
    ],
)
def test_truths_of_another_form(flat: Path, file, content) -> None:
    (flat / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(EvalError, match=r"the layout imagenet expects\nPATH/"):
        open_split(f"imagenet:{flat}", None, "test", "classification")


def test_an_image_of_another_name(flat: Path) -> None:
    picture(flat / "val/holiday.jpg")
    caffe(flat)
    with pytest.raises(EvalError, match=r"'holiday.jpg' isn't called as those of the validation set"):
        open_split(f"imagenet:{flat}", None, "test", "classification")


class TestV2:
    def test_folders_are_numbers_not_words(self, tmp_path: Path) -> None:
        folder = tmp_path / "imagenetv2-matched-frequency-format-val"
        class_folders(folder, {"0": 1, "1": 1, "2": 1, "10": 1, "100": 2, "999": 1}, ".jpeg")
        source = open_split(f"imagenet_v2:{tmp_path}", None, "test", "classification").source
        assert {source.name(index).split("/")[0]: label for index, label in enumerate(source.labels)} == {
            name: int(name) for name in ("0", "1", "2", "10", "100", "999")
        }

    @pytest.mark.parametrize("variant", ["threshold0.7", "top-images"])
    def test_the_other_variants(self, tmp_path: Path, variant) -> None:
        folder = tmp_path / f"imagenetv2-{variant}-format-val"
        class_folders(folder, {"7": 1})
        for data, split in ((tmp_path, variant), (folder, None)):
            opened = open_split(f"imagenet_v2:{data}", split, "test", "classification")
            assert (opened.split, opened.source.labels) == (variant, [7])
        with pytest.raises(EvalError, match=r"there is no .*imagenetv2-matched-frequency-format-val"):
            open_split(f"imagenet_v2:{tmp_path}", None, "test", "classification")

    @pytest.mark.parametrize("name", ["1000", "n01440764"])
    def test_another_folder(self, tmp_path: Path, name) -> None:
        class_folders(tmp_path / "imagenetv2-top-images-format-val", {"7": 1, name: 1})
        with pytest.raises(EvalError, match=f"must hold folders 0 to 999 with images, not '{name}'"):
            open_split(f"imagenet_v2:{tmp_path}", "top-images", "test", "classification")


class TestSubsets:
    WNIDS = wnids()[3::5]

    @pytest.mark.parametrize(("name", "folder"), [("imagenet_a", "imagenet-a"), ("imagenet_r", "imagenet-r")])
    @pytest.mark.parametrize("around", [True, False])
    def test_200_wnids_are_candidates_with_their_numbers_of_a_thousand(self, tmp_path, name, folder, around) -> None:
        class_folders(tmp_path / folder, dict.fromkeys(self.WNIDS, 1))
        text(tmp_path / folder / "README.txt", "about it")
        data = tmp_path if around else tmp_path / folder
        opened = open_split(f"{name}:{data}", None, "test", "classification")
        assert opened.source.labels == opened.candidates == list(range(3, 1000, 5))

    @pytest.mark.parametrize("letter", ["a", "r"])
    def test_the_official_folders_are_the_classes_that_others_restrict_to(self, tmp_path: Path, letter) -> None:
        pytest.importorskip("timm")
        tables = files("timm.data._info")
        synsets, indices = (
            (tables / f"imagenet_{letter}_{kind}.txt").read_text().split() for kind in ("synsets", "indices")
        )
        class_folders(tmp_path / f"imagenet-{letter}", dict.fromkeys(synsets, 1))
        opened = open_split(f"imagenet_{letter}:{tmp_path}", None, "test", "classification")
        assert opened.candidates == sorted(map(int, indices))

    def test_some_folders_only(self, tmp_path: Path) -> None:
        class_folders(tmp_path / "imagenet-a", dict.fromkeys(self.WNIDS[:7], 1))
        with pytest.raises(EvalError, match="holds images of 7 wnids, not 200: unpack it again"):
            open_split(f"imagenet_a:{tmp_path}", None, "test", "classification")


def test_sketch(tmp_path: Path) -> None:
    class_folders(tmp_path / "sketch", {LAST: 1, FIRST: 2}, ".JPEG")
    opened = open_split(f"imagenet_sketch:{tmp_path}", None, "test", "classification")
    assert (opened.source.labels, opened.candidates) == ([0, 0, 999], None)


class TestReal:
    SETS = ([5], [], [7, 2], [])

    @pytest.fixture
    def real(self, tmp_path: Path) -> Path:
        as_json(tmp_path / "real.json", self.SETS)
        return tmp_path

    @pytest.mark.parametrize("folders", [("", "", "", ""), (LAST, FIRST, FIRST, LAST)])
    def test_sets_follow_the_numbers_of_the_images(self, real: Path, folders) -> None:
        for number, folder in enumerate(folders, 1):
            picture(real / "val" / folder / val_name(number))
        opened = open_split(f"imagenet_real:{real}", None, "test", "classification")
        found = {
            Path(opened.source.name(index)).name: labels for index, labels in enumerate(opened.label_sets)
        }  # in whatever order the folders bring
        assert found == {val_name(number): labels for number, labels in enumerate(self.SETS, 1)}
        assert sorted(opened.source.labels) == [-1, -1, 5, 7]

    def test_it_shares_the_features_of_the_validation_set(self, real: Path) -> None:
        for number in (1, 2, 3, 4):
            picture(real / "val" / FIRST / val_name(number))
        val, other = (
            open_split(f"{name}:{real}", None, "test", "classification") for name in ("imagenet", "imagenet_real")
        )
        assert val.images_hash == other.images_hash
        assert val.hash != other.hash
        assert len({split.images_hash for split in (val, val.changed(val.source, "cropped"))}) == 2

    def test_the_published_file(self, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        published = (files("timm.data._info") / "imagenet_real_labels.json").read_text()
        (tmp_path / "real.json").write_text(published)
        sets = json.loads(published)
        assert (len(sets), sum(map(bool, sets))) == (50_000, 46_837)
        for number in (1, 2, 3, 50_000):
            picture(tmp_path / "val" / val_name(number))
        opened = open_split(f"imagenet_real:{tmp_path}", None, "test", "classification")
        assert opened.label_sets == [sets[number - 1] for number in (1, 2, 3, 50_000)]

    def test_more_images_than_entries(self, real: Path) -> None:
        picture(real / "val" / val_name(9))
        with pytest.raises(EvalError, match=r"real.json has 4 entries, .*val holds ILSVRC2012_val_00000009.JPEG"):
            open_split(f"imagenet_real:{real}", None, "test", "classification")

    @pytest.mark.parametrize(
        ("content", "message"),
        [({"a": 1}, "is no list of lists"), ([[1000]], "outside 0 to 999"), ([3], "is no list of lists")],
    )
    def test_another_file(self, tmp_path: Path, content, message) -> None:
        picture(tmp_path / "val" / val_name(1))
        as_json(tmp_path / "real.json", content)
        with pytest.raises(EvalError, match=message):
            open_split(f"imagenet_real:{tmp_path}", None, "test", "classification")
