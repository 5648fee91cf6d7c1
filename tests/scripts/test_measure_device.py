"""One command for all that a device can tell: what is finished stays, what fails is said and tried again."""

import json
import sys
from pathlib import Path

import pytest

import measure_device
from measure_device import Part, main
from measuring.progress import MARK

COUNTS = "import sys, pathlib; file = pathlib.Path(sys.argv[1]); file.write_text(file.read_text() + 'x'); print('seen')"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the results; parts are quick, count how often they run, and the second can fail or hang."""
    (tmp_path / "runs").write_text("")
    hangs = "import pathlib, sys, time; time.sleep(60 * (pathlib.Path(sys.argv[1]).exists()))"
    fails = "import pathlib, sys; sys.exit('broken pipe' if pathlib.Path(sys.argv[1]).exists() else 0)"
    table = [
        Part("first", "what works", ["-c", COUNTS, str(tmp_path / "runs")], [], numbers=False),
        Part("second", "what fails", ["-c", fails, str(tmp_path / "fail")], [], numbers=False),
        Part("third", "what hangs", ["-c", hangs, str(tmp_path / "hang")], [], numbers=False),
    ]
    monkeypatch.setattr(measure_device, "parts", lambda options: table)
    monkeypatch.setattr(measure_device, "make_photographs", lambda folder: None)
    return tmp_path / "measured"


def test_finished_parts_are_not_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder.parent / "runs"
    (folder.parent / "fail").touch()
    assert main([str(folder)]) == 1
    seen = capsys.readouterr()
    assert "second: exit status 1: broken pipe" in seen.err
    assert "Not measured yet: second." in seen.out
    assert "## first: what works\n\n```\nseen\n```" in seen.out
    (folder.parent / "fail").unlink()
    assert main([str(folder)]) == 0
    assert runs.read_text() == "x"
    assert (folder / "results.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    assert "Not measured" not in (folder / "results.md").read_text()


def test_a_part_ends_in_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "hang").touch()
    assert main([str(folder), "--limit", "0.5", "--only", "third"]) == 1
    assert "third: not finished within 0.5 seconds" in capsys.readouterr().err
    assert not (folder / "third.txt").exists()


def test_without_time_left_nothing_begins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--minutes", "0"]) == 0
    assert "Not measured yet: first, second, third." in capsys.readouterr().out
    assert (folder.parent / "runs").read_text() == ""


def test_a_wrong_part_is_refused_with_those_there_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--only", "fourth"]) == 2
    assert "there are first, second, third" in capsys.readouterr().err
    assert not folder.exists()


def test_every_part_is_listed_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "measured"), "--dry-run"]) == 0
    listed = capsys.readouterr().out
    for script in ("benchmark_step.py", "benchmark_attention.py", "benchmark_data.py", "benchmark_neighbours.py"):
        assert script in listed
    assert f"{tmp_path / 'measured' / 'photographs'}: made by this command" in listed
    assert "longer than 540 seconds is stopped" in listed
    assert not (tmp_path / "measured").exists()
    assert main([str(tmp_path / "measured"), "--dry-run", "--photographs", str(tmp_path)]) == 0
    assert "made by this command" not in capsys.readouterr().out


def test_tables_hold_the_numbers(tmp_path: Path) -> None:
    part = Part("step_b", "ViT-B/14", [], [])
    where = {"device": "Some device", "precision": "bf16", "torch": "2.11.0", "commit": "abc"}
    step = {
        "step_ms": [100.0, 90.0, 110.0], "images_per_second": [640.0, 711.0, 582.0], "executed_tflops": [390.0] * 3,
        "utilisation": 0.394, "peak_gb": 59.04, "waits": {"nonzero at a.py:1": 2}, "synchronising_calls": {},
        "recompilations": 0, "first_seconds": [60.0, 0.1],
    }  # fmt: skip
    (tmp_path / "step_b.json").write_text(json.dumps({"facts": where, "step": step}))
    (tmp_path / "step_b.txt").write_text(f"{MARK}block 1 of 5\nas printed")
    page = measure_device.results(tmp_path, [part])
    row = "| ViT-B/14 | 100 (90-110) | 640 (582-711) | 390 (390-390) | 39.4 % | 59.0 | 2 | 0 | 60 |"
    assert row in page
    assert "```\nas printed\n```" in page  # without what was said meanwhile
    assert "Some device, bf16, torch 2.11.0" in page


def test_what_is_started_is_this_python(tmp_path: Path) -> None:
    options = measure_device.parse_arguments([str(tmp_path), "--tiny"])
    for part in measure_device.parts(options):
        line = part.line(options)
        assert line[0] == sys.executable
        assert ("--output" in line) == part.numbers
