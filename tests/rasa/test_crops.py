"""Crops: the same for the same seed, fair to every place, and clear about images that can't be used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from franca.data.errors import DataError
from rasa.crops import CropBatch, Crops, CropsConfig, crop_of, split

PLAIN = {"colour_jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def config(**options: Any) -> CropsConfig:
    return CropsConfig(**{"size": 16, "batch_size": 4, "workers": 0} | options)


def by_name(batches: list[CropBatch]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        for name, crop in zip(batch.names, batch.pixels, strict=True):
            found.setdefault(name, []).append(crop)
    return found


def test_crops_are_the_same_whatever_the_number_of_workers(drawn_images: type[Any]) -> None:
    none, some = (
        list(Crops(drawn_images(9), range(9), config(views=2, workers=workers), seed=4).batches(1))
        for workers in (0, 2)
    )
    assert [batch.names for batch in none] == [batch.names for batch in some]
    for one, other in zip(none, some, strict=True):
        assert torch.equal(one.pixels, other.pixels)


def test_every_image_comes_as_often_as_asked_in_each_pass_and_looks_different(drawn_images: type[Any]) -> None:
    crops = Crops(drawn_images(9), [1, 4, 7], config(views=3), seed=0)
    assert len(crops) == 9
    first, again, second = (by_name(list(crops.batches(number))) for number in (0, 0, 1))
    assert {name: len(views) for name, views in first.items()} == dict.fromkeys(("1.png", "4.png", "7.png"), 3)
    for name, views in first.items():
        assert all(torch.equal(one, same) for one, same in zip(views, again[name], strict=True))
        pictures = [picture.numpy().tobytes() for picture in [*views, *second[name]]]
        assert len(set(pictures)) == 6


def test_a_seed_decides_the_crops(drawn_images: type[Any]) -> None:
    one, other = (next(Crops(drawn_images(), range(20), config(), seed=seed).batches()) for seed in (0, 1))
    assert not torch.equal(one.pixels, other.pixels)


def test_nothing_global_is_drawn_from(drawn_images: type[Any]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    list(Crops(drawn_images(4), range(4), config(workers=1), seed=0).batches())
    assert torch.equal(torch.rand(1), expected)


def mean_crop(turned: bool, count: int = 600) -> Tensor:
    """(4, 4) over many crops of an image that is bright in its upper left."""
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :20, :8] = 255
    total = torch.zeros(16, 16)
    for number in range(count):
        draws = torch.Generator().manual_seed(number)
        total += crop_of(image, config(turned=turned, scale=(0.3, 1.0), **PLAIN), draws)[0]
    return torch.nn.functional.avg_pool2d(total[None] / count, 4)[0]


def test_turned_crops_have_no_side_that_is_up() -> None:
    """Averaged over crops, the picture is the same from all eight sides; without turning it is not."""
    for turned, spread in ((True, 20), (False, 60)):
        mean = mean_crop(turned)
        sides = [side.rot90(turns) for side in (mean, mean.flip(-1)) for turns in range(4)]
        distance = max((mean - side).abs().max().item() for side in sides)
        assert (distance < spread) == turned, distance


def test_a_turn_is_one_of_eight_and_each_is_as_likely() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    sides = {side.rot90(turns).numpy().tobytes() for side in (image[0], image[0].flip(-1)) for turns in range(4)}
    counts = dict.fromkeys(sides, 0)
    for number in range(800):
        draws = torch.Generator().manual_seed(number)
        # the whole image, whatever its aspect is to be: too large a box falls back to its middle
        crop = crop_of(image, config(scale=(1.0, 1.0), **PLAIN), draws)
        counts[crop[0].numpy().tobytes()] = counts.get(crop[0].numpy().tobytes(), 0) + 1
    assert set(counts) == sides
    assert min(counts.values()) > 60


@pytest.mark.parametrize(("held_out", "count"), [(0.1, 2), (0.001, 1), (0.999, 19)])
def test_a_split_shares_no_image_and_covers_all(held_out: float, count: int, drawn_images: type[Any]) -> None:
    parts = split(drawn_images(20), config(held_out=held_out), seed=0, set_apart=0)
    assert sorted(parts.fit + parts.held_out) == list(range(20))
    assert (len(parts.held_out), parts.probe, parts.test) == (count, [], [])
    assert split(drawn_images(20), config(held_out=held_out), seed=0, set_apart=0) == parts


@pytest.mark.parametrize(("share", "each"), [(0.1, 1), (0.5, 5), (0.9, 9)])
def test_images_for_evidence_are_in_no_other_part(share: float, each: int, drawn_images: type[Any]) -> None:
    parts = split(drawn_images(20), config(held_out=0.1), seed=0, set_apart=share)
    assert sorted(parts.fit + parts.held_out + parts.probe + parts.test) == list(range(20))
    assert (len(parts.probe), len(parts.test)) == (each, each)
    assert parts.fit
    assert parts.held_out


def test_a_part_of_the_images_is_drawn_from_all(drawn_images: type[Any]) -> None:
    parts = split(drawn_images(1000), config(max_images=50), seed=0, set_apart=0.2)
    assert len({*parts.fit, *parts.held_out, *parts.probe, *parts.test}) == 50
    assert max(parts.fit) > 800
    assert split(drawn_images(1000), config(max_images=50), seed=1, set_apart=0.2) != parts


@pytest.mark.parametrize(("count", "share", "least"), [(0, 0.0, 2), (1, 0.0, 2), (3, 0.1, 4)])
def test_too_few_images_to_split(count: int, share: float, least: int, drawn_images: type[Any]) -> None:
    with pytest.raises(DataError, match=rf"^{count} images?: RASA needs at least {least}, "):
        split(drawn_images(count), config(), seed=0, set_apart=share)


def test_unreadable_images_are_left_out_and_listed(drawn_images: type[Any]) -> None:
    crops = Crops(drawn_images(40, broken={3, 17}), range(40), config(views=2), seed=0)
    found = by_name(list(crops.batches()))
    assert len(found) == 38
    assert crops.skipped == {"3.png: cut off", "17.png: cut off"}


def test_too_many_unreadable_images_are_an_error(drawn_images: type[Any]) -> None:
    crops = Crops(drawn_images(40, broken=set(range(5))), range(40), config(), seed=0)
    with pytest.raises(
        DataError, match=r"5 of 40 images can't be read; the first: 0\.png: cut off; .*Repair or remove"
    ):
        list(crops.batches())


def test_no_readable_image_is_an_error(drawn_images: type[Any]) -> None:
    crops = Crops(drawn_images(40, broken={3}), [3], config(), seed=0)
    with pytest.raises(DataError, match=r"no image of 1 can be read: 3\.png: cut off"):
        list(crops.batches())


class TestLists:
    @pytest.fixture
    def place(self, images: Path, tmp_path: Path) -> Path:
        """A folder of the form of Pascal VOC, whose images are called 2007_0.png to 2007_9.png."""
        root = tmp_path / "VOC2012"
        root.mkdir()
        (root / "JPEGImages").symlink_to(root / "pictures")
        (root / "pictures").mkdir()
        for file in (images / "cats").iterdir():
            (root / "pictures" / f"2007_{file.name}").symlink_to(file)
        return root

    def names(self, place: Path, text: str) -> list[str]:
        (place / "list.txt").write_text(text)
        source = CropsConfig(path=str(place / "JPEGImages"), list=str(place / "list.txt")).build_source()
        return [source.name(number) for number in range(len(source))]

    @pytest.mark.parametrize(
        "line", ["2007_{}", "2007_{}.png", "/JPEGImages/2007_{}.png /SegmentationClassAug/2007_{}.png", "2007_{}  1"]
    )
    def test_lines_as_pascal_voc_has_them(self, line: str, place: Path) -> None:
        text = "\n".join(line.format(number, number) for number in (7, 2, 5)) + "\n\n"
        assert self.names(place, text) == ["2007_7.png", "2007_2.png", "2007_5.png"]

    def test_a_name_that_stands_there_twice_is_one_image(self, place: Path) -> None:
        """It could otherwise be fitted and held out at once."""
        assert self.names(place, "2007_1\n2007_2\n2007_1\n") == ["2007_1.png", "2007_2.png"]

    def test_names_within_folders(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("dogs/3\ncats/3.png\n")
        source = CropsConfig(path=str(images), list=str(tmp_path / "list.txt")).build_source()
        assert [source.name(number) for number in range(len(source))] == ["dogs/3.png", "cats/3.png"]

    def test_names_that_no_image_has(self, place: Path) -> None:
        with pytest.raises(DataError, match=r"names 3 images, of which data\.path lacks 2, such as \['2008_1', 'x'\]"):
            self.names(place, "2007_1\n2008_1\nx\n")

    def test_an_empty_list(self, place: Path) -> None:
        with pytest.raises(DataError, match=r"list\.txt' names 0 images"):
            self.names(place, "\n")

    def test_no_list(self, place: Path) -> None:
        with pytest.raises(DataError, match=r"data\.list='.*nowhere\.txt' is no file"):
            CropsConfig(path=str(place / "JPEGImages"), list=str(place / "nowhere.txt")).build_source()

    def test_the_root_of_pascal_voc_is_not_the_folder_of_its_images(self, place: Path) -> None:
        with pytest.raises(DataError, match=r"root of a Pascal VOC tree.* give '.*VOC2012/JPEGImages'"):
            CropsConfig(path=str(place)).build_source()


@pytest.mark.parametrize(
    "options",
    [
        {"source": "web"}, {"size": 7}, {"views": 0}, {"batch_size": 0}, {"workers": -1}, {"max_images": -1},
        {"blur": 1.5}, {"held_out": 0.0}, {"held_out": 1.0}, {"scale": (0.5, 0.2)}, {"scale": (0.0, 1.0)},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"data\.{name}="):
        CropsConfig(**options)
