"""Archives made of real images where FRANCA_DATA names some, else of drawn ones."""

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Content = Mapping[str, bytes]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes are kept in a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FRANCA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    """Twelve JPEG files, all different."""
    folder = Path(os.environ.get("FRANCA_DATA", "")) / "imagenette128" / "val"
    files = sorted(folder.glob("*/*.JPEG")) if os.environ.get("FRANCA_DATA") else []
    if len(files) >= 12:
        return [file.read_bytes() for file in files[:: len(files) // 12][:12]]
    random = np.random.default_rng(0)
    return [_encoded(random.integers(0, 256, (5, 6, 3), dtype=np.uint8), (96, 80), "jpeg") for _ in range(12)]


def _encoded(pixels: np.ndarray, size: tuple[int, int], form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="session")
def numbered() -> Callable[[int], bytes]:
    """A PNG file of one colour, from which its number (below 65,536) can be read again."""
    return lambda number: _encoded(np.full((1, 1, 3), (number // 256, number % 256, 0), np.uint8), (16, 16), "png")


@pytest.fixture(scope="session")
def make_tar() -> Callable[..., Path]:
    """make_tar(path, {member name: content}, mode="w")."""

    def make(path: Path, members: Content, mode: str = "w") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return make


@pytest.fixture
def make_shards(
    tmp_path: Path, make_tar: Callable[..., Path], numbered: Callable[[int], bytes]
) -> Callable[[int, int], Path]:
    """make_shards(shards, images): a folder of 000.tar, … like img2dataset's; shard s holds images s * images + i."""

    def make(n_shards: int, n_images: int) -> Path:
        for shard in range(n_shards):
            members: dict[str, bytes] = {}
            for number in range(shard * n_images, (shard + 1) * n_images):
                members |= {f"{number:05}.json": b"{}", f"{number:05}.png": numbered(number), f"{number:05}.txt": b"a"}
            make_tar(tmp_path / "shards" / f"{shard:03}.tar", members)
        return tmp_path / "shards"

    return make
