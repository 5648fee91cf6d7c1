"""Teacher files: what is written is what is read, and every way a file can be wrong has its own message."""

import errno

import pytest
import torch
from torch import Tensor

from franca.files import write_atomically
from franca.hub import CheckpointError, checkpoint, describe, load_model, load_weights, save_teacher
from franca.hub.checkpoint import hash_tensors, teacher_writer
from franca.models import VisionTransformer

SMALL = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_register_tokens": 1}


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL)


def teacher_state(model: VisionTransformer) -> dict[str, Tensor]:
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    return state | {"dino_head.last_layers.0.weight_v": torch.randn(4, 8)}


def description(model: VisionTransformer) -> dict:
    return {"arch": "custom", "backbone": model.config, "step": 7, "mean": (0.5, 0.5, 0.5), "stage": "pretrain"}


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "teacher.pth"
    save_teacher(path, teacher_state(model), description(model))
    return path


def test_loaded_model_gives_the_same_features(model, saved) -> None:
    loaded = load_model(checkpoint=saved)
    images = torch.randn(2, 3, 42, 28)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)


def test_file_is_plain_and_describes_itself(model, saved) -> None:
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"teacher", "description"}
    found = describe(saved)
    assert found == content["description"]
    assert found["step"] == 7
    assert found["mean"] == [0.5, 0.5, 0.5]
    assert found["arch"] == "custom"
    assert found["hash"] == hash_tensors(content["teacher"])
    assert found["torch"] == str(torch.__version__)
    assert {"format", "franca"} <= found.keys()


def test_hash_depends_on_names_shapes_and_values_only() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    same = {"empty": torch.zeros(0), "b": torch.ones(4, dtype=torch.bfloat16)[::2], "a": torch.arange(6.0)}
    assert hash_tensors(state) == hash_tensors(same)
    for other in ({"c": state["a"]}, {"a": state["a"].view(2, 3)}, {"a": state["a"] + 1e-7}, {"b": torch.ones(2)}):
        changed = {name: tensor for name, tensor in state.items() if name not in other}
        if "c" in other:
            del changed["a"]
        assert hash_tensors({**changed, **other}) != hash_tensors(state)


def test_views_are_saved_without_their_storage(model, tmp_path) -> None:
    row = torch.zeros(1_000_000)[:4]
    save_teacher(tmp_path / "t.pth", {"backbone.x": row}, description(model))
    assert (tmp_path / "t.pth").stat().st_size < 20_000


def test_failed_write_keeps_the_earlier_file(saved, model, monkeypatch) -> None:
    before = saved.read_bytes()

    def full_disk(content, file) -> None:
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match=r"teacher\.pth could not be written .*No space left"):
        save_teacher(saved, teacher_state(model), description(model))
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == ["teacher.pth"]


@pytest.mark.skipif(not __import__("pathlib").Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_full_disk_is_an_os_error(tmp_path, model, monkeypatch) -> None:
    """The device /dev/full answers every write as a full disk does."""

    def to_full_device(file) -> None:
        with open("/dev/full", "wb") as full:
            torch.save(teacher_state(model), full)

    with pytest.raises(OSError, match="free space"):
        write_atomically(tmp_path / "teacher.pth", to_full_device)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_an_os_error(tmp_path, model) -> None:
    with pytest.raises(OSError, match="absent"):
        save_teacher(tmp_path / "absent" / "teacher.pth", teacher_state(model), description(model))


@pytest.mark.parametrize("key", ["arch", "backbone"])
def test_description_needs_its_architecture(model, tmp_path, key) -> None:
    partial = {name: value for name, value in description(model).items() if name != key}
    with pytest.raises(CheckpointError, match=key):
        save_teacher(tmp_path / "t.pth", teacher_state(model), partial)


def test_description_holds_plain_types(model, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"description\.data\.0 is Tensor|description\.data\[0\] is Tensor"):
        save_teacher(tmp_path / "t.pth", teacher_state(model), description(model) | {"data": [torch.ones(1)]})


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_model(checkpoint=tmp_path / "nowhere.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_truncated_file(saved, share) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"teacher\.pth \(\d+ bytes\) can't be read: truncated"):
        load_model(checkpoint=saved)


def test_file_that_is_no_checkpoint(tmp_path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1000))
    with pytest.raises(CheckpointError, match="can't be read"):
        describe(tmp_path / "photo.jpg")


def test_damaged_tensor_is_found_by_its_hash(saved) -> None:
    content = torch.load(saved, weights_only=True)
    content["teacher"]["backbone.cls_token"] += 1
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(checkpoint=saved)


@pytest.mark.parametrize(
    "content",
    [
        *(torch.ones(3), [torch.ones(3)], {"state_dict": {}}, {"teacher": {}}, {"epoch": 3}),
        *({"teacher": {}, "description": {}}, {"teacher": {}, "description": "a model"}),
    ],
)
def test_content_without_tensors_is_named(tmp_path, content) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth holds no backbone; found: no tensors"):
        describe(tmp_path / "other.pth")


def test_other_architecture_is_a_short_table(model, tmp_path) -> None:
    state = teacher_state(model)
    del state["backbone.cls_token"]
    state["backbone.patch_embed.proj.weight"] = torch.zeros(16, 3, 7, 7)
    state |= {f"backbone.extra.{i}": torch.zeros(1) for i in range(30)}
    save_teacher(tmp_path / "t.pth", state, description(model))
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint=tmp_path / "t.pth")
    message = str(caught.value)
    assert "missing     cls_token (1, 1, 16)" in message
    assert "unexpected  extra.0 (1,)" in message
    assert "and 20 more" in message
    assert len(message.splitlines()) < 20


def test_other_shape_is_shown_and_nothing_is_copied(model) -> None:
    before = hash_tensors(model.state_dict())
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state["patch_embed.proj.weight"] = torch.zeros(16, 3, 7, 7)
    with pytest.raises(CheckpointError, match=r"proj\.weight: file \(16, 3, 7, 7\), model \(16, 3, 14, 14\)"):
        load_weights(model, state, origin="a test")
    assert hash_tensors(model.state_dict()) == before


@pytest.mark.parametrize(("argument", "value"), [("window_size", 7), ("ffn", "mixture"), ("num_heads", 5)])
def test_a_backbone_that_cant_be_built(model, tmp_path, argument, value) -> None:
    config = {**model.config, argument: value}
    save_teacher(tmp_path / "t.pth", teacher_state(model), {"arch": "custom", "backbone": config})
    with pytest.raises(CheckpointError, match=rf"t\.pth describes a backbone .*\b{argument}"):
        load_model(checkpoint=tmp_path / "t.pth")


def test_writer_writes_what_save_teacher_does(model, saved, tmp_path) -> None:
    content = torch.load(saved, weights_only=True)
    write_atomically(tmp_path / "other.pth", teacher_writer(content["teacher"], description(model)))
    assert describe(tmp_path / "other.pth") == describe(saved)


def test_a_later_format_asks_for_a_later_franca(saved) -> None:
    content = torch.load(saved, weights_only=True)
    content["description"] |= {"format": checkpoint.FORMAT + 1, "franca": "9.9"}
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match=r"teacher\.pth has format 2, written by franca 9\.9.*upgrade"):
        describe(saved)


@pytest.mark.parametrize("value", ["2", None, [1]])
def test_a_format_that_is_no_number_is_damage(saved, value) -> None:
    content = torch.load(saved, weights_only=True)
    content["description"]["format"] = value
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match=r"says format .*, which is no number"):
        load_model(checkpoint=saved)
