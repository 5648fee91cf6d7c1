"""Small data sets in their official shapes, from real image files."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 8)  # width, height
PALETTE = [value for number in range(256) for value in (number, 255 - number, 7 * number % 256)]


def picture(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = SIZE) -> None:
    """One plain image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def numbers(path: Path, values: list[int], size: tuple[int, int] = SIZE, palette: bool = False) -> np.ndarray:
    """A mask of one number per pixel: the values in turn, row by row. Returns them, (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    array = np.resize(np.array(values, np.uint8), (height, width))
    mask = Image.fromarray(array, "L")
    if palette:
        mask = mask.convert("P")
        mask = Image.frombytes("P", size, array.tobytes())
        mask.putpalette(PALETTE)
    mask.save(path)
    return array


def colours(path: Path, values: list[tuple[int, int, int]], size: tuple[int, int] = SIZE) -> None:
    """A mask of colours: the values in turn, row by row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.resize(np.array(values, np.uint8), (height, width, 3)), "RGB").save(path)


def in_turn(values: list[int], size: tuple[int, int] = SIZE) -> list[list[int]]:
    """What a mask of these values in turn must read as."""
    width, height = size
    return np.resize(np.array(values), (height, width)).tolist()


def text(path: Path, *lines: str) -> None:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def as_json(path: Path, content: object) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def class_folders(root: Path, counts: Mapping[str, int], ending: str = ".png") -> None:
    """Folders with so many images each."""
    for folder, count in counts.items():
        for number in range(count):
            picture(root / folder / f"{number}{ending}", size=(2, 2))
