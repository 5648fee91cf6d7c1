import importlib.util

import pytest
import torch

from franca.data.errors import MissingPackage
from franca.data.sources import SOURCES, photographs
from franca.data.sources.photographs import PHOTOGRAPHS, SamplePhotographs, window


@pytest.fixture(scope="module")
def train() -> SamplePhotographs:
    return SamplePhotographs("train")


def test_labels_are_the_photographs(train: SamplePhotographs) -> None:
    assert len(train.classes) >= 12
    assert train.classes == list(PHOTOGRAPHS)
    assert train.labels == sorted(label for label in range(len(train.classes)) for _ in range(9))
    assert len(train) == len(train.labels)
    assert all(train.name(i).startswith(train.classes[label] + "/left/") for i, label in enumerate(train.labels))
    assert len({train.name(i) for i in range(len(train))}) == len(train)


def test_every_window_is_a_square_of_some_size(train: SamplePhotographs) -> None:
    for index in range(len(train)):
        image = train.load(index)
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert image.shape[1] == image.shape[2] >= 100


def test_the_halves_share_no_pixel_and_are_covered() -> None:
    """Marks every pixel with the windows that show it, for even and odd widths."""
    for height, width in ((30, 60), (31, 75), (47, 48)):
        shown = {}
        for half in ("left", "right"):
            seen = torch.zeros(1, height, width)
            for row in range(3):
                for column in range(3):
                    part = window(seen, half, row, column)
                    assert part.shape[-1] == part.shape[-2] > 0
                    part += 1
            shown[half] = seen
        assert not ((shown["left"] > 0) & (shown["right"] > 0)).any()
        assert (shown["left"][..., : width // 2] > 0).all()
        assert (shown["right"][..., width - width // 2 :] > 0).all()
        assert shown["left"].max() >= 4  # windows overlap


def test_splits() -> None:
    test, both = SamplePhotographs("test"), SamplePhotographs("all")
    assert all("/right/" in test.name(i) for i in range(len(test)))
    assert len(both) == 2 * len(test)
    assert test.labels == SamplePhotographs("train").labels
    assert len(SOURCES["photographs"]("", 3)) == len(test)  # "" is train
    with pytest.raises(ValueError, match=r"data\.path='/some/folder'.*train, test, all"):
        SamplePhotographs("/some/folder")


def test_grey() -> None:
    assert SamplePhotographs("test", channels=1).load(0).shape[0] == 1


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    for package in ("skimage", "sklearn"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=package: None if name == gone else find_spec(name)
        )
        with pytest.raises(MissingPackage, match=rf"the package {package} is missing: pip install .*quickstart"):
            SamplePhotographs()


def test_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photographs.PHOTOGRAPHS, "gone", ("skimage", "data/gone.png"))
    with pytest.raises(MissingPackage, match=r"skimage/data/gone\.png is missing"):
        SamplePhotographs()
