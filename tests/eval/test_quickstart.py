"""scripts/quickstart.py: one command trains, continues and reports."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "quickstart.py"
SHORT = [
    *("steps=2", "optimizer.warmup_steps=1", "model.depth=1", "model.embed_dim=64", "model.num_heads=2"),
    *("data.batch_size=4", "data.workers=0", "data.crops.global_size=42", "data.crops.local_size=28"),
    *("heads.hidden_dim=16", "heads.dino.prototypes=32", "heads.ibot.prototypes=32", "checkpoint.every=1"),
]


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "my images = [1], ä"  # characters that mean something in YAML and on command lines
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_every_command_has_a_run_of_its_own(quickstart) -> None:
    assert quickstart.run_folder([]) == Path("runs/quickstart")
    one, other = quickstart.run_folder(["steps=1"]), quickstart.run_folder(["steps=2"])
    assert len({one, other, Path("runs/quickstart")}) == 3
    assert one == quickstart.run_folder(["steps=1"])
    assert quickstart.run_folder(["steps=1", "output=mine"]) == Path("mine")


@pytest.mark.slow
def test_own_images_from_start_to_report(quickstart, images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--data", str(images), "--output", "shown", *SHORT]
    assert quickstart.main(command) == 0
    page = (tmp_path / "shown" / "index.html").read_text(encoding="utf-8")
    assert "other half of the image found" in page
    assert (tmp_path / "shown" / "index.html").as_uri() in capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    teacher = torch.load(run / "teacher.pth", weights_only=True)
    assert teacher["description"]["step"] == 2
    assert str(images) in teacher["description"]["data"]
    (tmp_path / "shown" / "index.html").unlink()
    assert quickstart.main(command) == 0  # finished already: writes the report again
    assert (tmp_path / "shown" / "index.html").exists()
    assert list((tmp_path / "runs").iterdir()) == [run]
    again = torch.load(run / "teacher.pth", weights_only=True)
    assert again["description"]["hash"] == teacher["description"]["hash"]


def test_a_missing_folder_is_an_error_before_anything_is_written(quickstart, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.main(["--data", "absent", *SHORT]) == 2
    assert "absent" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cant_be_written_is_an_error_before_training(quickstart, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit, match="2"):
        quickstart.main([*SHORT, "--output", "taken"])
    assert "taken is a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_report_that_fails_is_an_error_without_traceback(quickstart, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "train", lambda arguments: 0)  # and leaves no run
    assert quickstart.main(["output=gone"]) == 2
    error = capsys.readouterr().err
    assert "gone/config.yaml" in error
    assert "the same command" in error


def test_options_may_stand_on_either_side(quickstart) -> None:
    options = quickstart.parse_arguments(["steps=1", "--data", "here", "optimizer.lr=1e-3"])
    assert (options.data, options.overrides) == ("here", ["steps=1", "optimizer.lr=1e-3"])


def test_a_misspelt_option_names_the_nearest(quickstart, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.main(["optimizer.warmup_step=1"]) == 2
    assert "warmup_steps" in capsys.readouterr().err
