"""From what a person writes ("voc:/data", or a folder) to one split of a data set, with a hash that identifies it."""

import hashlib
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from franca.data.sources import Source
from franca.data.sources.folder import ImageFolder
from franca.eval.datasets.base import Layout, OpenedSplit, Role, WrongLayout
from franca.eval.datasets.layouts import LAYOUTS
from franca.eval.errors import EvalError

LOOKED_INTO = 8  # images at most, spread over a set
BEGINNING = 1 << 16  # bytes
ALIKE = 0.65  # of 1, from where a name may be a misspelt layout: foo is no food101


def open_split(data: str, split: str | None, role: Role, kind: str) -> OpenedSplit:
    """One split of a data set.

    Args:
        data: "LAYOUT:PATH", or a path: a folder with images/ and masks/, else class folders.
        split: of the layout; None: the one for ``role``.
        kind: what the protocol reads: "classification", "segmentation", or "images" for any of them.

    Raises:
        EvalError: the layout or split doesn't exist, is of another kind, or the folder looks otherwise.
    """
    name, path = layout_of(data, kind)
    layout = LAYOUTS[name]
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise EvalError(f"{data!r}: {path} {what}; {_expected(name, layout)}")
    split = split or layout.split_for(role, path)
    if not split:
        raise EvalError(f"{data!r} has no training split: it only tests what was trained elsewhere, as on imagenet")
    if split not in layout.splits:
        raise EvalError(f"{data!r} has no split {split!r}: choose {', '.join(layout.splits)}")
    try:
        source = layout.build(path, split)
    except WrongLayout as error:
        raise EvalError(f"{data!r}, split {split}: {error}; {_expected(name, layout)}") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # lists that hold something else
        said = f"its files can't be read ({type(error).__name__}: {error})"
        raise EvalError(f"{data!r}, split {split}: {said}; {_expected(name, layout)}") from error
    if kind == "classification" and source.labels is None:
        few = "the images lie in fewer than two class folders"
        raise EvalError(f"{data!r}, split {split}: {few}; {_expected(name, layout)}")
    return OpenedSplit(name, split, source, hash_of(source), layout.mean_per_class, images_hash_of(source))


def hash_of(source: Source) -> str:
    """SHA-256 of the names, labels, classes and file sizes of a source; the content of the files isn't read."""
    digest = hashlib.sha256()
    for part in (source.classes, source.labels, getattr(source, "label_sets", None)):
        digest.update(repr(part).encode())
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    for file in _files(source):
        digest.update(b"%d " % _size(file))
    return digest.hexdigest()


def images_hash_of(source: Source) -> str:
    """SHA-256 of the names and file sizes of the images alone, and of the beginnings of a few: what features depend on.

    Uncompressed images of two sets may agree in names and sizes.
    """
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    for place, file in enumerate(_files(source, "image_files")):
        digest.update(b"%d " % _size(file))
        if place % -(-len(source) // LOOKED_INTO) == 0:
            digest.update(_beginning(file))
    return digest.hexdigest()


def _files(source: Source, which: str = "files") -> Iterator[str]:
    if isinstance(source, ImageFolder):
        return (os.path.join(source.root, source.name(index)) for index in range(len(source)))
    files: Iterator[str] = getattr(source, which)() if hasattr(source, which) else iter(())
    return files


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # an image that can't be read is left out later, and counted
        return -1


def _beginning(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(BEGINNING)
    except OSError:
        return b""


def layout_of(data: str, kind: str) -> tuple[str, Path]:
    """Name of the layout, and folder, of what ``--data`` takes; ``kind`` as `open_split`.

    Raises EvalError where there is no such layout, or it is of another kind.
    """
    name, path = _parse(data)
    if kind not in (LAYOUTS[name].kind, "images"):
        said = f"{data!r} is a data set of {LAYOUTS[name].kind}, and {kind} is needed"
        raise EvalError(f"{said}: choose {_of_kind(kind)}")
    return name, path


def _parse(data: str) -> tuple[str, Path]:
    """Layout and folder."""
    name, colon, rest = data.partition(":")
    if name in LAYOUTS and colon:
        if not rest:
            raise EvalError(f"{data!r} names no folder: write {name}:PATH")
        return name, Path(rest).expanduser()
    path = Path(data).expanduser()
    if path.is_dir():
        return ("segmentation_folder" if (path / "masks").is_dir() and (path / "images").is_dir() else "folder"), path
    near = get_close_matches(name, LAYOUTS, n=1, cutoff=ALIKE)
    advice = f" (did you mean {near[0]}:{rest or 'PATH'}?)" if near else ""
    raise EvalError(
        f"{data!r} is no folder{advice}; name a folder, or LAYOUT:PATH with one of the layouts {', '.join(LAYOUTS)}"
    )


def _of_kind(kind: str) -> str:
    return ", ".join(name for name, layout in LAYOUTS.items() if layout.kind == kind)


def _expected(name: str, layout: Layout) -> str:
    return f"the layout {name} expects\n{layout.expected}"
