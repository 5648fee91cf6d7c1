"""What a conversion replaces, refuses and leaves behind; and its command."""

import json
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from franca.hub.checkpoint import CheckpointError
from franca.hub.convert import convert, main, write_together
from tests.hub.conversion import LAYOUTS, output, random_model, save, with_head


@pytest.mark.parametrize("to", LAYOUTS)
def test_nothing_is_replaced_unless_forced(to: str, tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model())
    done = convert(source, output(tmp_path, to), to)
    before = {path: path.read_bytes() for path in done.files}
    with pytest.raises(FileExistsError, match=r"exists.*--force"):
        convert(source, output(tmp_path, to), to, img_size=84)
    assert {path: path.read_bytes() for path in done.files} == before
    convert(source, output(tmp_path, to), to, img_size=84, force=True)
    assert {path: path.read_bytes() for path in done.files} != before


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    convert(source, tmp_path / "out", "timm")
    assert (tmp_path / "out/README.md").read_text() == "mine"


def test_a_rasa_head_of_other_weights_is_noticed(tmp_path: Path) -> None:
    with_head(tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out", "timm")
    save(tmp_path / "other.pth", random_model())
    with pytest.raises(FileExistsError, match=r"rasa\.pth would pass for the RASA head of"):
        convert(tmp_path / "other.pth", tmp_path / "out", "timm", force=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model())
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a folder, and this layout is one file"):
        convert(source, tmp_path / "folder", "franca", force=True)
    with pytest.raises(FileExistsError, match="is a file, and this layout is a folder"):
        convert(source, tmp_path / "file", "timm", force=True)


@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_nothing_new(existing: bool, tmp_path: Path) -> None:
    def succeed(file: BinaryIO) -> None:
        file.write(b"after")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("no space left")

    folder = tmp_path / "out"
    if existing:
        folder.mkdir()
        (folder / "a").write_text("before")
    files = {folder / "a": succeed, folder / "b": fail}
    with pytest.raises(OSError, match=r"out/b could not be written \(no space left\)"):
        write_together(files)
    assert folder.exists() == existing
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "a"] if existing else [])
    assert not existing or (folder / "a").read_text() == "before"


def test_an_image_size_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model())
    with pytest.raises(ValueError, match="img_size=100 is not a multiple of patch_size=14"):
        convert(source, tmp_path / "out", "timm", img_size=100)
    assert not (tmp_path / "out").exists()


class TestCommand:
    def test_says_what_was_written_and_how_to_load_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(tmp_path / "in.pth", random_model())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["convert", "in.pth", "out", "--to", "timm", "--img-size", "84"])
        main()
        printed = capsys.readouterr().out
        assert "wrote out/model.safetensors" in printed
        assert 'load it: timm.create_model("local-dir:out", pretrained=True)' in printed
        assert json.loads((tmp_path / "out/config.json").read_text())["model_args"]["img_size"] == 84

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing.pth", "out", "--to", "timm"], "missing.pth"),
            (["in.pth", "out", "--to", "timm", "--img-size", "15"], "not a multiple of patch_size"),
            (["in.pth", "nowhere/deep/out.pth", "--to", "franca"], "nowhere"),
            (["in.pth", "out", "--to", "onnx"], "onnx"),
        ],
    )
    def test_errors_are_one_message_with_status_2(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        save(tmp_path / "in.pth", random_model())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]


def test_a_safetensors_file_is_known_by_its_ending(tmp_path: Path) -> None:
    source = save(tmp_path / "in.pth", random_model())
    with pytest.raises(CheckpointError, match=r"name it .*out\.safetensors"):
        convert(source, tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()
