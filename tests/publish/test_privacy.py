"""Places become names."""

from pathlib import Path

import pytest

from franca.publish.privacy import NOT_STATED, last_name, without_places


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/imagenet21k", "imagenet21k"),
        ("/data/my images/", "my images"),
        ("../sets/train", "train"),
        ("train", "train"),
        ("/data/laion/{00000..00999}.tar", "{00000..00999}.tar"),
        ("pipe:aws s3 cp s3://bucket/laion/{0..9}.tar -", "{0..9}.tar"),
        ("pipe:fetch-all", NOT_STATED),
        ("https://user:word@host/set.tar", "set.tar"),
        ("/home/someone", NOT_STATED),
        ("/Users/someone/", NOT_STATED),
        ("/home/someone/photos", "photos"),
        ("~", NOT_STATED),
        ("~/photos", "photos"),
        (str(Path.home()), NOT_STATED),
        ("/", NOT_STATED),
        ("..", NOT_STATED),
    ],
)
def test_a_place_is_its_last_name(place: str, name: str) -> None:
    assert last_name(place) == name


def test_places_are_found_wherever_they_stand() -> None:
    value = {"path": "/a/b", "parts": [{"path": "/c/d", "weight": 0.5}, "folder"], "steps": 3, "test": "", "no": None}
    assert without_places(value) == {
        "path": "b",
        "parts": [{"path": "d", "weight": 0.5}, "folder"],
        "steps": 3,
        "test": "",
        "no": None,
    }
