"""Files that are not what their names say: one error of our own, whatever torch makes of their bytes."""

import contextlib
import random
from pathlib import Path

import pytest
import torch

from franca.hub import CheckpointError, describe, load_model
from franca.models import VisionTransformer

STATE = VisionTransformer(img_size=28, embed_dim=64, depth=1, num_heads=1).state_dict()
# A picture, prose, and pages that are served in a file's place
OTHERS = {
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(100),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 345\n",
    "page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "csv": b"a,b,c\n1,2,3\n",
    "empty": b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files_are_refused_without_torchs_advice(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.* can't be read") as caught:
        load_model(checkpoint=tmp_path / name)
    assert "weights_only" not in str(caught.value)


def refused_or_read(path: Path) -> None:
    """Whatever is in the file: no error but ours."""
    with contextlib.suppress(CheckpointError):
        load_model(checkpoint=path)
    with contextlib.suppress(CheckpointError):
        describe(path)


def test_random_bytes(tmp_path) -> None:
    chance = random.Random(0)
    for start in (b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x04\x95"):
        for _ in range(60):
            (tmp_path / "a.pth").write_bytes(start + chance.randbytes(chance.randrange(200)))
            refused_or_read(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits(tmp_path, zipped) -> None:
    """In the part that says what lies where: the first bytes of an old file, the pickle and the directory of a zip."""
    path, chance = tmp_path / "a.pth", random.Random(1)
    torch.save({"teacher": STATE}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    places = [*range(3000), *range(len(content) - 3000, len(content))]
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.choice(places)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        refused_or_read(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, zipped, share) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="can't be read: truncated"):
        load_model(checkpoint=tmp_path / "a.pth")
