"""What a run recorded of the machine it ran on is nobody else's business: places become names."""

from pathlib import Path
from typing import Any

NOT_STATED = "not stated"
HOMES = tuple(map(Path, ("/home", "/Users")))  # what lies directly below is a person's name


def last_name(place: str) -> str:
    """The last name in a path, a pattern of paths, an address or a ``pipe:`` command.

    "/data/imagenet/train" -> "train", "pipe:cat /data/{0..9}.tar" -> "{0..9}.tar"; a home folder -> "not stated".
    """
    if place.startswith("pipe:"):
        place = next((word for word in reversed(place.split()) if "/" in word), "")
    path = Path(place).expanduser() if place.startswith("~/") or place == "~" else Path(place)
    if path.parent in HOMES or path == Path.home() or not path.name.strip("."):
        return NOT_STATED
    return path.name


def without_places(value: Any) -> Any:
    """``value`` (plain types) in which every string that may be a place is its last name."""
    if isinstance(value, dict):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if isinstance(value, str) and ("/" in value or value.startswith(("~", "pipe:"))):
        return last_name(value)
    return value
