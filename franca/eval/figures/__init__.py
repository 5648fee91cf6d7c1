"""Figures as PNG files: losses and scores, PCA of patch features, attention, masks. They need matplotlib."""

from importlib.util import find_spec


def can_draw() -> bool:
    """Whether matplotlib is installed: everything else here needs it at import."""
    return find_spec("matplotlib") is not None
