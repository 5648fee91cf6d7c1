"""Images and masks that lie in two folders under the same names."""

from collections.abc import Callable
from pathlib import Path

from franca.data.decode import EXTENSIONS
from franca.data.sources.listing import list_images
from franca.eval.datasets.base import WrongLayout, need, some

Pairs = tuple[list[str], list[str]]  # images and their masks, relative to one root


def pair(
    root: Path, images: Path, masks: Path, ending: str = "", keep: Callable[[str], bool] = lambda stem: True
) -> Pairs:
    """Every image below a folder with the mask of the same name.

    Args:
        ending: what the masks' names have more, before the dot.
        keep: the images wanted, by their path without the dot and what follows.

    Raises:
        WrongLayout: there is no image, or one has no mask.
    """
    names = [name for name in list_images(str(need(images))) if keep(_stem(name))]
    found = {_stem(name): name for name in list_images(str(need(masks)))}
    missing = [name for name in names if _stem(name) + ending not in found]
    if not names:
        raise WrongLayout(f"{images} holds no image of this split (files that end in {' '.join(EXTENSIONS)})")
    if missing:
        raise WrongLayout(f"{len(missing)} of {len(names)} images in {images} have no mask in {masks}: {some(missing)}")
    below = [str(folder.relative_to(root)) for folder in (images, masks)]
    return (
        [str(Path(below[0], name)) for name in names],
        [str(Path(below[1], found[_stem(name) + ending])) for name in names],
    )


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))
