"""Which folders are runs that can be published, and what is said of the others."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from franca.publish.errors import PublishError
from franca.publish.release import Release
from franca.publish.run import open_run

Make = Callable[..., Release]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("", "is no folder; give the output folder of a run"),
        ("config.yaml", "is no run of franca.train: it holds no config.yaml"),
        ("checkpoints", "holds no complete checkpoint yet"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_with_what_it_lacks(lost: str, message: str, own_run: Path) -> None:
    if lost == "config.yaml":
        (own_run / lost).unlink()
    else:
        shutil.rmtree(own_run / lost)
    with pytest.raises(PublishError, match=message):
        open_run(own_run)


def test_other_runs_are_named(private: Path, own_run: Path) -> None:
    with pytest.raises(PublishError, match="is a RASA run: give the pretraining run"):
        open_run(private / "rasa")
    (own_run / "config.yaml").write_text("colour: blue\n")
    with pytest.raises(PublishError, match=r"no run that this version of franca\.train made: .*colour"):
        open_run(own_run)


@pytest.mark.parametrize(
    ("steps", "message"), [("3", "no whole state of step 3; there are: 0, 2, 4, 5, 6"), ("first", "give all, last")]
)
def test_steps_that_are_not_there_are_refused(steps: str, message: str, run: Path) -> None:
    with pytest.raises(PublishError, match=message):
        open_run(run).choose(steps)


def test_a_manifest_names_files_of_its_own_folder_only(own_run: Path) -> None:
    manifest = own_run / "checkpoints/step_0000006/manifest.json"
    size = (own_run / "config.yaml").stat().st_size
    manifest.write_text(manifest.read_text().replace('"files": {', f'"files": {{"../../config.yaml": {size}, '))
    assert max(open_run(own_run).states) == 5


def test_a_run_that_still_trains_is_published_with_a_word_about_it(release: Make, own_run: Path) -> None:
    program = "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, own_run / ".lock"], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        done = release(of=own_run)
        other.kill()
    assert "the run is still training; its last complete checkpoint is of step 6" in done.notes
    assert not any("training" in note for note in release(of=own_run, output="later").notes)


def test_a_run_that_changes_meanwhile_is_no_riddle(
    release: Make, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_run(own_run)
    shutil.rmtree(own_run / "checkpoints/step_0000004")  # as the run itself does with states that it need not keep
    monkeypatch.setattr("franca.publish.release.open_run", lambda path: found)
    with pytest.raises(PublishError, match="went away while it was read"):
        release(of=own_run)
    assert not (tmp_path / "release").exists()
