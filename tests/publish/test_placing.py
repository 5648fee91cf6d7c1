"""A release is there as a whole or not at all, and takes the place of nothing but another release."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from franca.publish import placing
from franca.publish import release as release_module
from franca.publish.errors import PublishError
from franca.publish.release import Release

Make = Callable[..., Release]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failure_leaves_nothing_and_a_kill_is_cleared_up(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(release_module, "write_listing", fail)
        with pytest.raises(OSError, match="No space left"):
            release()
        assert list(tmp_path.iterdir()) == []
    (tmp_path / ".release.partial").mkdir()
    (tmp_path / ".release.partial/teacher.pth").write_text("half of one")
    release(steps="last")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_another_release_is_replaced_with_force_alone(
    release: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = release(steps="2").folder
    before = content_of(folder)
    with pytest.raises(PublishError, match=r"release exists; .* add --force"):
        release()
    with monkeypatch.context() as patch:
        patch.setattr(release_module, "write_listing", fail)
        with pytest.raises(OSError, match="No space left"):
            release(force=True)
    assert content_of(folder) == before
    assert release(force=True, steps="last").step == 6
    assert "checkpoints" not in {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("strange", ["thesis.tex", "checkpoints/step_0000007/teacher.pth"])
def test_force_replaces_nothing_that_no_release_put_there(strange: str, release: Make) -> None:
    folder = release().folder
    (folder / strange).parent.mkdir(exist_ok=True)
    (folder / strange).write_text("work of years")
    before = content_of(folder)
    with pytest.raises(PublishError, match=f"holds {strange}, which no release"):
        release(force=True)
    assert content_of(folder) == before


def test_folders_of_other_things_are_not_replaced(release: Make, own_run: Path, tmp_path: Path) -> None:
    before = content_of(own_run)
    for output in ("own", "own/release", "."):
        with pytest.raises(PublishError, match="lie within each other"):
            release(of=own_run, output=output, force=True)
    shutil.copytree(own_run, tmp_path / "other")
    with pytest.raises(PublishError, match="which no release"):
        release(of=own_run, output="other", force=True)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(PublishError, match="is no folder"):
        release(of=own_run, output="file", force=True)
    assert content_of(own_run) == content_of(tmp_path / "other") == before


def test_what_a_kill_between_two_renames_left_is_put_back(release: Make, tmp_path: Path) -> None:
    folder = release(steps="last").folder
    folder.rename(tmp_path / ".release.earlier")
    with pytest.raises(PublishError, match="exists"):
        release()
    assert (folder / "teacher.pth").is_file()


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two disks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(placing.os, "link", refuse)


def test_states_are_links_to_those_of_the_run(release: Make, run: Path) -> None:
    folder = release(with_state=True, steps="last").folder
    name = "checkpoints/step_0000006/__0_0.distcp"
    assert os.path.samefile(folder / name, run / name)


def test_across_disks_they_are_copies_of_the_same_bytes(release: Make, run: Path, no_links: None) -> None:
    folder = release(with_state=True, steps="last").folder
    name = "checkpoints/step_0000006/__0_0.distcp"
    assert not os.path.samefile(folder / name, run / name)
    assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_a_long_copy_shows_how_far_it_is(no_links: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = os.urandom((9 << 20) + 1)
    (tmp_path / "source").write_bytes(content)
    placing.place(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("copying source: 0.0 of 9.4 MB (0%)")
    assert "(100%)" in said[-1]
