"""The folder of a step: whole parts or none, one process at a time, nobody else's files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from franca.data.preparation.errors import PreparationError
from franca.data.preparation.work_folder import MANIFEST, WorkFolder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "input").write_text("one")
    return tmp_path / "input"


def opened(folder: Path, source: Path, restart: bool = False, **options) -> WorkFolder:
    return WorkFolder(folder, "sort", options, [source], restart)


def test_a_part_is_made_once_and_told_again(source: Path, tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> dict:
        (folder / "rows").write_text("rows")
        made.append(folder)
        return {"rows": 4}

    for _ in range(2):
        with opened(tmp_path / "out", source) as work:
            assert work.part("a/000001", make) == {"rows": 4}
            assert (work.folder("a/000001") / "rows").read_text() == "rows"
    assert len(made) == 1


def test_a_part_that_was_cut_off_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def cut(folder: Path) -> dict:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    def whole(folder: Path) -> dict:
        assert list(folder.iterdir()) == []
        return {}

    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "out", source) as work:
        work.part("a", cut)
    with opened(tmp_path / "out", source) as work:
        assert not work.folder("a").exists()
        work.part("a", whole)


def test_a_finished_step_keeps_its_results_alone(source: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "out", source) as work:
        work.part("a", lambda folder: {"file": (folder / "rows").write_text("rows")})
        work.publish("list", {"sub/0.txt": work.folder("a") / "rows"})
        work.finish({"kept": 1}, "kept 1\n")
    with opened(tmp_path / "out", source) as work:
        assert work.report == {"kept": 1}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("list", "report.json", "report.txt", MANIFEST, ".lock")
    }
    assert (tmp_path / "out/list/sub/0.txt").read_text() == "rows"


def test_what_changed_is_named(source: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "out", source, size=3):
        pass
    with pytest.raises(PreparationError, match=r"size: there 3, here 4\): name another folder, or .*--restart"):
        opened(tmp_path / "out", source, size=4).__enter__()
    with pytest.raises(PreparationError, match="there sort, here mix"):
        WorkFolder(tmp_path / "out", "mix", {"size": 3}, [source]).__enter__()
    source.write_text("another")
    with pytest.raises(PreparationError, match="input was changed"):
        opened(tmp_path / "out", source, size=3).__enter__()


def test_another_program_s_files_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(PreparationError, match=r"no step of the preparation made, such as thesis\.tex"):
            opened(tmp_path / "out", source, restart).__enter__()
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"


def test_starting_anew_removes_what_steps_made_and_nothing_else(source: Path, tmp_path: Path) -> None:
    """Downloaded shards lie beside the list that they came from."""
    with opened(tmp_path / "out", source, size=3) as work:
        work.part("a", lambda folder: {})
        work.publish("list", {"0": source})
    (tmp_path / "out/shards").mkdir()
    (tmp_path / "out/shards/00000.tar").write_text("downloaded")
    with opened(tmp_path / "out", source, restart=True, size=4) as work:
        assert not work.folder("a").exists()
        assert not (work.path / "list").exists()
        assert json.loads((work.path / MANIFEST).read_text())["options"] == {"size": 4}
    assert (tmp_path / "out/shards/00000.tar").read_text() == "downloaded"


def test_a_second_process_is_refused(source: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from franca.data.preparation.work_folder import WorkFolder
try:
    with WorkFolder(Path(sys.argv[1]), "sort", {}, [Path(sys.argv[2])]):
        print("went in")
except RuntimeError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out"), str(source)]
    with opened(tmp_path / "out", source):
        held = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "another process is at work in" in held.stdout
    free = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert free.stdout == "went in\n"
