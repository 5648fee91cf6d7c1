"""scripts/bring_back.py: a run in pieces, and the folder that they make again."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import franca
from bring_back import main
from franca.train.config import load_config
from franca.train.trainer import Trainer
from tests.tiny import write_tiny


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run: two steps on the sample photographs."""
    settings = ["device=cpu", "steps=2", "data.source=photographs", f"output={tmp_path / 'run'}"]
    trainer = Trainer(load_config(write_tiny(tmp_path / "tiny.yaml", Path("train"), *settings)))
    trainer.run()
    return trainer.output


def test_what_was_brought_back_is_the_teacher_rounded_to_half(run: Path, tmp_path: Path) -> None:
    assert main(["pack", str(run), str(tmp_path / "out"), "--piece-mb", "0.02"]) == 0
    pieces = sorted((tmp_path / "out").glob("teacher.pth.*"))
    assert len(pieces) > 1
    assert all(piece.stat().st_size <= 20_000 for piece in pieces)
    assert not (tmp_path / "out" / "teacher.pth").exists()
    assert main(["join", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    here, there = (franca.load_model(checkpoint=folder / "teacher.pth") for folder in (run, tmp_path / "again"))
    for (name, mine), (_, other) in zip(here.state_dict().items(), there.state_dict().items(), strict=True):
        assert torch.equal(mine.half().float(), other.float()), name
    assert (tmp_path / "again" / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_damaged_and_foreign_pieces_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["pack", str(run), str(out)]) == 0
    (piece,) = out.glob("teacher.pth.*")
    data = piece.read_bytes()
    piece.write_bytes(data[:-1])
    assert main(["join", str(out), str(again)]) == 2
    assert "is damaged" in capsys.readouterr().err
    piece.unlink()
    assert main(["join", str(out), str(again)]) == 2
    (out / "pieces.json").write_text("{")
    assert main(["join", str(out), str(again)]) == 2
    assert "bring it again" in capsys.readouterr().err
    for name in ("../teacher.pth.00", "notes.txt"):
        (out / "pieces.json").write_text(json.dumps({name: "0"}))
        assert main(["join", str(out), str(again)]) == 2
        assert f"{name!r}: a piece lies in the same folder, and is of teacher.pth" in capsys.readouterr().err
    assert not (again / "teacher.pth").exists()


def test_a_folder_that_holds_something_is_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(run), str(tmp_path / "out")]) == 0
    (run / "metrics.jsonl").write_text("newer")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["join", str(tmp_path / "out"), str(run)]) == 2
    assert f"{run} is not empty: name a new folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    assert main(["join", str(tmp_path / "out"), str(tmp_path / "empty")]) == 0
    franca.load_model(checkpoint=tmp_path / "empty" / "teacher.pth")


@pytest.mark.parametrize("names", [[], ["metrics.jsonl"]])
def test_pieces_without_a_teacher_are_refused(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    hashes = dict.fromkeys(names, hashlib.sha256(b"").hexdigest())
    (tmp_path / "pieces.json").write_text(json.dumps(hashes))
    assert main(["join", str(tmp_path), str(tmp_path / "again")]) == 2
    assert f"{tmp_path / 'pieces.json'} names no piece of teacher.pth; bring all" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_what_can_not_be_packed_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["pack", str(run), str(out), "--piece-mb", "0"]) == 2
    assert main(["pack", str(run), str(out)]) == 0
    assert main(["pack", str(run), str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    content = torch.load(run / "teacher.pth", weights_only=True)
    content["teacher"]["backbone.norm.weight"][0] = 1e6
    torch.save(content, run / "teacher.pth")
    assert main(["pack", str(run), str(tmp_path / "other")]) == 2
    assert "backbone.norm.weight is not finite in fp16" in capsys.readouterr().err


@pytest.mark.parametrize(("what", "file"), [("pack", "teacher.pth"), ("join", "pieces.json")])
def test_what_is_not_there_is_told_with_what_to_name(what: str, file: str, tmp_path: Path, capsys) -> None:
    assert main([what, str(tmp_path), str(tmp_path / "new")]) == 2
    assert f"error: {tmp_path / file} is not there; name the folder " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
