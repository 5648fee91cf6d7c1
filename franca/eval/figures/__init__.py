"""Figures as PNG files: losses and scores, PCA of patch features, attention, masks. They need matplotlib."""

from importlib.util import find_spec
from pathlib import PurePath


def can_draw() -> bool:
    """Whether matplotlib is installed: everything else here needs it at import."""
    return find_spec("matplotlib") is not None


def short_name(model: str) -> str:
    """What a model is called in a figure: of a longer path the last two parts; other names as they are."""
    kind, colon, rest = model.rpartition(":")
    parts = PurePath(rest).parts
    return f"{kind}{colon}{'/'.join(parts[-2:])}" if len(parts) > 2 else model
