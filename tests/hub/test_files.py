"""Files and folders: what is found in them, and what is refused without running anything."""

import argparse
import json
import shutil
import string
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from franca.hub import CheckpointError, describe, load_model, safetensors
from franca.hub.checkpoint import save_teacher
from franca.hub.files import archive_parts, find_in_folder, read_file
from franca.hub.registry import find
from franca.models import RASAHead, VisionTransformer

STATE = VisionTransformer(img_size=28, embed_dim=64, depth=1, num_heads=1).state_dict()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def pack(folder: Path, name: str, state=STATE) -> Path:
    torch.save({"teacher": state}, folder / "inner.pth")
    with tarfile.open(folder / name, "w:gz") as tar:
        tar.add(folder / "inner.pth", arcname="checkpoints/inner.pth")
    (folder / "inner.pth").unlink()
    return folder / name


def cut(path: Path, count: int = 3) -> list[Path]:
    content = path.read_bytes()
    size = -(-len(content) // count)
    parts = [path.with_name(f"{path.name}.part_a{'abc'[number]}") for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * size : (number + 1) * size])
    path.unlink()
    return parts


def loads(path: Path) -> bool:
    model = load_model(checkpoint=path)
    return all(torch.equal(tensor, STATE[name]) for name, tensor in model.state_dict().items())


class TestPickles:
    class Runs:
        """Unpickled, it would make a file."""

        def __init__(self, path: Path) -> None:
            self.path = path

        def __reduce__(self):
            return Path.touch, (self.path,)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_python_objects_are_refused_by_name(self, folder, zipped) -> None:
        content = {"model": STATE, "args": argparse.Namespace(lr=0.1)}
        torch.save(content, folder / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"a\.pth holds Python objects \(argparse\.Namespace\).*state_dict"):
            load_model(checkpoint=folder / "a.pth")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run(self, folder, zipped) -> None:
        content = {"model": STATE, "x": self.Runs(folder / "made")}
        torch.save(content, folder / "evil.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="holds Python objects"):
            load_model(checkpoint=folder / "evil.pth")
        assert not (folder / "made").exists()

    def test_a_program_is_refused(self, folder) -> None:
        with zipfile.ZipFile(folder / "p.pt", "w") as archive:
            archive.writestr("p/constants.pkl", b"")
        with pytest.raises(CheckpointError, match="is a TorchScript program"):
            read_file(folder / "p.pt")

    def test_a_file_of_before_zip_is_read(self, folder) -> None:
        torch.save(STATE, folder / "old.pth", _use_new_zipfile_serialization=False)
        assert loads(folder / "old.pth")


class TestSafetensors:
    def test_tensors_alone(self, folder) -> None:
        with (folder / "a.safetensors").open("wb") as file:
            safetensors.write(STATE, {}, file)
        assert loads(folder / "a.safetensors")

    def test_a_description_in_its_notes_counts(self, folder) -> None:
        described = {
            "arch": "custom",
            "backbone": {"img_size": 28, "embed_dim": 64, "depth": 1, "num_heads": 4},
            "step": 3,
        }
        with (folder / "a.safetensors").open("wb") as file:
            safetensors.write(STATE, {"description": json.dumps(described)}, file)
        assert load_model(checkpoint=folder / "a.safetensors").config["num_heads"] == 4
        assert describe(folder / "a.safetensors")["step"] == 3

    def test_a_damaged_description_is_named(self, folder) -> None:
        with (folder / "a.safetensors").open("wb") as file:
            safetensors.write(STATE, {"description": "{"}, file)
        with pytest.raises(CheckpointError, match="description in its metadata is no JSON"):
            read_file(folder / "a.safetensors")


class TestFolder:
    @pytest.mark.parametrize("name", ["my.pth", "teacher.pt", "some.safetensors", "weights.tar.gz"])
    def test_the_only_checkpoint_is_taken(self, folder, name) -> None:
        if name.endswith("gz"):
            pack(folder, name)
        elif name.endswith("safetensors"):
            with (folder / name).open("wb") as file:
                safetensors.write(STATE, {}, file)
        else:
            torch.save(STATE, folder / name)
        torch.save({}, folder / "my_rasa.pth")
        (folder / "notes.txt").write_text("text")
        (folder / ".hidden.pth").write_text("text")
        assert loads(folder)

    @pytest.mark.parametrize("name", ["rasa.pth", "RASA.pth", "x_rasa.pth", "x_rasa.safetensors"])
    def test_a_rasa_head_is_no_second_checkpoint(self, folder, name) -> None:
        """Whatever wrote it: rasa.train and conversions, or a release."""
        torch.save(STATE, folder / "x.pth")
        head = RASAHead(64, 2).state_dict()
        with (folder / name).open("wb") as file:
            safetensors.write(head, {}, file) if name.endswith("safetensors") else torch.save(head, file)
        assert loads(folder)
        model = load_model(checkpoint=folder / "x.pth", RASA_local_state_dict=folder)
        torch.testing.assert_close(model.rasa_head.state_dict(), head, rtol=0, atol=0)

    def test_the_published_name_in_any_case_goes_before_others(self, folder) -> None:
        for name in ("other.pth", "FRANCA_VITB14_in21k.PTH", "franca_vitb14_In21K_rasa.pth"):
            torch.save(STATE, folder / name)
        published = find("vit_base")
        assert find_in_folder(folder, published).name == "FRANCA_VITB14_in21k.PTH"
        assert find_in_folder(folder, published, rasa=True).name == "franca_vitb14_In21K_rasa.pth"

    def test_several_are_listed(self, folder) -> None:
        for name in ("a.pth", "b.pth"):
            torch.save(STATE, folder / name)
        with pytest.raises(CheckpointError, match=r"should hold one checkpoint, found: a\.pth, b\.pth\. Name the file"):
            load_model(checkpoint=folder)

    def test_none_is_said(self, folder) -> None:
        with pytest.raises(CheckpointError, match="should hold one checkpoint, found: none"):
            load_model(checkpoint=folder)
        with pytest.raises(CheckpointError, match=r"one RASA head \(a file …_rasa\.pth, or rasa\.pth\), found: none"):
            find_in_folder(folder, rasa=True)

    @pytest.mark.parametrize("config", ["{", '{"model_type": "dinov2"}'])
    def test_a_library_folder_without_weights_is_said(self, folder, config) -> None:
        (folder / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"is no JSON|neither model\.safetensors nor pytorch_model\.bin"):
            load_model(checkpoint=folder)

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "dinov2", "num_attention_heads": 4},
            {"architecture": "vit_base_patch14_dinov2", "model_args": {"num_heads": 4}},
        ],
    )
    def test_heads_come_from_a_library_s_config(self, folder, config) -> None:
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(STATE, folder / "pytorch_model.bin")
        assert load_model(checkpoint=folder).config["num_heads"] == 4


class TestArchives:
    def test_pieces_are_joined_whichever_is_named(self, folder) -> None:
        parts = cut(pack(folder, "weights.tar.gz"))
        for place in (*parts, folder):
            assert loads(place)

    def test_unpacked_once_and_again_when_it_changed(self, folder, cache, monkeypatch) -> None:
        path = pack(folder, "weights.tar.gz")
        assert loads(path)
        assert loads(path)
        assert len(list(cache.glob("*.pth"))) == 1
        changed = {name: tensor + 1 for name, tensor in STATE.items()}
        pack(folder, "weights.tar.gz", changed)
        assert torch.equal(load_model(checkpoint=path).cls_token, changed["cls_token"])
        assert [file for file in cache.iterdir() if file.suffix != ".pth"] == []

    def test_an_archive_that_changed_leaves_no_copy_but_others_stay(self, folder, cache) -> None:
        (folder / "other").mkdir()
        loads(pack(folder / "other", "weights.tar.gz"))
        others = set(cache.iterdir())
        for step in range(3):
            path = pack(folder, "weights.tar.gz", {name: tensor + step for name, tensor in STATE.items()})
            load_model(checkpoint=path)
        assert len(set(cache.iterdir()) - others) == 1
        assert others < set(cache.iterdir())

    @pytest.mark.parametrize(
        ("endings", "expected"),
        [
            (["aa", "ab", "ba"], [f"a{letter}" for letter in string.ascii_lowercase] + ["ba"]),
            (["00", "02", "01"], ["00", "01", "02"]),
            (["aaa", "aac"], ["aaa", "aab", "aac"]),
            (["1b", "1a"], ["1a", "1b"]),
        ],
    )
    def test_pieces_go_on_as_split_counts(self, folder, endings, expected) -> None:
        for ending in endings:
            (folder / f"w.tar.gz.part_{ending}").write_bytes(b"part")
        found = archive_parts(folder / f"w.tar.gz.part_{endings[0]}")
        assert [part.name for part in found][: len(expected)] == [f"w.tar.gz.part_{ending}" for ending in expected]

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_missing_piece_is_named(self, folder, number) -> None:
        parts = cut(pack(folder, "weights.tar.gz"))
        parts[number].unlink()
        with pytest.raises(CheckpointError, match=rf"part_a{'ab'[number]} is missing"):
            load_model(checkpoint=parts[2])

    def test_a_published_archive_knows_its_last_piece(self, folder) -> None:
        names = [file.name for file in find("vit_giant2").files]
        for name in names[:2]:
            (folder / name.upper()).write_bytes(b"part")
        parts = archive_parts(folder / names[0].upper())
        assert [part.name.lower() for part in parts] == [name.lower() for name in names]
        assert [part.exists() for part in parts] == [True, True, False]


def test_describe_tells_what_tensors_tell(parity_dir) -> None:
    found = describe(parity_dir / "tiny_checkpoint.pth", num_heads=2)
    assert found["arch"] == "custom"
    assert found["layout"] == "upstream"
    assert (found["backbone"]["embed_dim"], found["backbone"]["depth"], found["backbone"]["num_heads"]) == (32, 4, 2)
    assert found["heads"]["dino_head"]["prototypes"] == [4, 8, 16, 32, 64]
    assert found["rasa"] is None


def test_hash_of_a_foreign_file_is_that_of_a_teacher_file(folder) -> None:
    torch.save(STATE, folder / "flat.pth")
    state = {f"backbone.{name}": tensor for name, tensor in STATE.items()}
    config = load_model(checkpoint=folder / "flat.pth").config
    written = save_teacher(folder / "ours.pth", state, {"arch": "custom", "backbone": config})
    assert describe(folder / "flat.pth")["hash"] == written["hash"]


def test_describe_takes_a_rasa_head_by_itself(folder) -> None:
    torch.save(RASAHead(64, 8).state_dict(), folder / "a_rasa.pth")
    assert describe(folder / "a_rasa.pth")["rasa"] == {"input_dim": 64, "n_pos_layers": 8}


def test_the_file_may_be_replaced_while_the_model_lives(folder) -> None:
    """Tensors are copied out of the mapped file."""
    torch.save(STATE, folder / "a.pth")
    model = load_model(checkpoint=folder / "a.pth")
    size = (folder / "a.pth").stat().st_size
    with (folder / "a.pth").open("r+b") as file:
        file.write(bytes(size))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in model.state_dict().items())
    shutil.rmtree(folder)
