"""The safetensors format: read and written as the library does."""

import json

import pytest
import torch

from franca.hub import CheckpointError, safetensors

TENSORS = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "weight": torch.arange(6.0).view(2, 3).T,
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(3.0),
    "count": torch.tensor([2**40]),
}


@pytest.fixture
def path(tmp_path):
    with (tmp_path / "some.safetensors").open("wb") as file:
        safetensors.write(TENSORS, {"description": "what it is"}, file)
    return tmp_path / "some.safetensors"


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def test_what_is_written_is_what_is_read(path) -> None:
    tensors, notes = safetensors.read(path)
    assert same(tensors, TENSORS)
    assert notes == {"description": "what it is"}


def test_the_library_reads_what_is_written(path) -> None:
    library = pytest.importorskip("safetensors.torch")
    assert same(library.load_file(path), TENSORS)


def test_what_the_library_writes_is_read(tmp_path) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    library.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found, notes = safetensors.read(tmp_path / "theirs.safetensors")
    assert same(found, TENSORS)
    assert notes == {"format": "pt"}


def test_unaligned_bytes_are_read(tmp_path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (3 - len(header) % 4)
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f")
    assert safetensors.read(tmp_path / "odd.safetensors")[0]["a"].tolist() == [1.0]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(path, share) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"some\.safetensors.* can't be read: truncated"):
        safetensors.read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32"},
        "no table",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match="can't be read"):
        safetensors.read(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4"])
def test_a_type_that_is_not_read_is_named(tmp_path, dtype) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "small.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=rf"holds tensors of type {dtype}; save it as one of .*BF16") as caught:
        safetensors.read(tmp_path / "small.safetensors")
    assert "truncated" not in str(caught.value)


def test_notes_that_are_no_table(tmp_path) -> None:
    header = json.dumps({"__metadata__": [1]}).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="__metadata__ is no table"):
        safetensors.read(tmp_path / "bad.safetensors")


def test_a_type_without_place_is_named(tmp_path) -> None:
    with (tmp_path / "c").open("wb") as file, pytest.raises(CheckpointError, match=r"wave is torch\.complex64"):
        safetensors.write({"wave": torch.zeros(1, dtype=torch.complex64)}, {}, file)
