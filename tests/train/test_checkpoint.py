"""Saved states: whole or absent, the newest whole one is found, a full disk costs nothing that was there."""

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import franca
from franca.hub import CheckpointError, describe, load_model
from franca.train import checkpoint
from franca.train.checkpoint import CheckpointConfig, CheckpointFolder
from franca.train.config import TrainConfig
from franca.train.trainer import Trainer


def small_state(fill: float) -> dict[str, Any]:
    return {"net": {"weight": torch.full((3, 4), fill)}, "progress": {"step": torch.tensor(int(fill))}}


def no_extra(folder: Path) -> None:
    """Nothing beside the state."""


def save(folder: CheckpointFolder, step: int) -> Path:
    return folder.save(step, small_state(step), no_extra)


def steps_in(folder: CheckpointFolder) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(folder.folder.glob("step_*"))]


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", CheckpointConfig(every=10, keep_last=2))


def test_what_is_saved_comes_back(folder: CheckpointFolder) -> None:
    assert folder.latest() is None
    save(folder, 10)
    path = save(folder, 20)
    assert folder.latest() == path
    state = small_state(0)
    folder.load(path, state)
    assert torch.equal(state["net"]["weight"], torch.full((3, 4), 20.0))
    assert int(state["progress"]["step"]) == 20


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [60]), (2, 0, [50, 60]), (2, 30, [0, 30, 50, 60]), (1, 20, [0, 20, 40, 60])],
)
def test_the_last_few_and_every_so_many_are_kept(
    keep_last: int, keep_every: int, kept: list[int], tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path, CheckpointConfig(every=10, keep_last=keep_last, keep_every=keep_every))
    for step in range(0, 70, 10):
        save(folder, step)
    assert steps_in(folder) == kept


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_state(path: Path) -> None:
    cut(next(path.glob("*.distcp")))


def lose_state(path: Path) -> None:
    next(path.glob("*.distcp")).unlink()


def cut_manifest(path: Path) -> None:
    cut(path / checkpoint.MANIFEST)


def lose_manifest(path: Path) -> None:
    (path / checkpoint.MANIFEST).unlink()


def replace_manifest(path: Path) -> None:
    (path / checkpoint.MANIFEST).write_text("[1, 2]")


@pytest.mark.parametrize("damage", [damage_state, lose_state, cut_manifest, lose_manifest, replace_manifest])
def test_damaged_states_are_passed_over_with_a_warning(
    damage: Callable[[Path], None], folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    good, newest = save(folder, 10), save(folder, 20)
    damage(newest)
    with caplog.at_level(logging.WARNING):
        assert folder.latest() == good
    assert str(newest) in caplog.text


def test_damaged_states_never_push_good_ones_out(folder: CheckpointFolder) -> None:
    for step in (10, 20, 30):
        save(folder, step)
    assert steps_in(folder) == [20, 30]
    damage_state(folder.folder / "step_0000030")
    save(folder, 25)  # resumed from 20 and stopped by a signal
    assert steps_in(folder) == [20, 25, 30]
    latest = folder.latest()
    assert latest is not None
    assert latest.name == "step_0000025"
    save(folder, 30)
    assert steps_in(folder) == [25, 30]
    assert folder.latest() == folder.folder / "step_0000030"


def test_a_damaged_state_that_was_overtaken_counts_for_nothing_and_goes(folder: CheckpointFolder) -> None:
    save(folder, 10)
    damage_state(save(folder, 20))
    save(folder, 25)  # resumed from 10, with another checkpoint.every
    assert steps_in(folder) == [10, 25]


def test_other_files_in_the_folder_are_left_alone(folder: CheckpointFolder) -> None:
    save(folder, 10)
    for name in ("step_0000010_backup", "step_notes.txt", "best"):
        (folder.folder / name).mkdir()
    for step in (20, 30, 40):
        save(folder, step)
    assert folder.latest() == folder.folder / "step_0000040"
    assert {"step_0000010_backup", "step_notes.txt", "best"} < {path.name for path in folder.folder.iterdir()}


class Killed(BaseException):
    """Stands for the process's end: nothing after it runs."""


def test_a_writer_that_dies_half_way_leaves_the_earlier_states(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before, inside and after the state's files, and before the rename."""
    good = save(folder, 10)

    def die(*_: object, **__: object) -> None:
        raise Killed

    def half_written(*_: object, checkpoint_id: Path, **__: object) -> None:
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise Killed

    for owner, name, replacement in [
        (dcp, "save", die),
        (dcp, "save", half_written),
        (checkpoint, "_write_manifest", die),
        (os, "replace", die),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            with pytest.raises(Killed):
                save(folder, 20)
        assert folder.latest() == good
        assert steps_in(folder) == [10]
    assert list(folder.folder.glob(".*.unfinished"))
    save(folder, 20)
    assert sorted(path.name for path in folder.folder.iterdir()) == ["step_0000010", "step_0000020"]


def test_what_a_killed_save_left_goes_with_the_next_save(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(Killed):
            save(folder, 13)
    save(folder, 20)
    assert [path.name for path in folder.folder.iterdir()] == ["step_0000020"]


def test_a_full_disk_is_said_and_costs_nothing(
    folder: CheckpointFolder, files_of_at_most: Callable[[int], AbstractContextManager[None]]
) -> None:
    good = save(folder, 10)
    state = {"weight": torch.zeros(10_000)}
    with files_of_at_most(4096), pytest.raises(CheckpointError, match=r"could not save step 20 .*File too large"):
        folder.save(20, state, no_extra)
    assert [path.name for path in folder.folder.iterdir()] == [good.name]
    assert folder.latest() == good


def test_the_teacher_file_is_part_of_the_save(folder: CheckpointFolder) -> None:
    good = save(folder, 10)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device; earlier states are kept"):
        folder.save(20, small_state(20), full)
    assert folder.latest() == good


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"net": {"weight": torch.zeros(3, 5)}}, r"net\.weight: there \(3, 4\), here \(3, 5\)"),
        ({"net": {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}}, r"net\.bias: there absent, here \(3,\)"),
        ({"net": {}}, r"net\.weight: there \(3, 4\), here absent"),
    ],
)
def test_a_state_of_another_architecture_is_refused_by_name(
    other: dict[str, Any], named: str, folder: CheckpointFolder
) -> None:
    path = save(folder, 10)
    state = other | {"progress": {"step": torch.tensor(0)}}
    with pytest.raises(CheckpointError, match=f"another architecture(.|\n)*{named}"):
        folder.load(path, state)
    assert int(state["progress"]["step"]) == 0, "a refused state must leave the run's own as it was"


def test_an_unreadable_state_is_an_error_that_says_what_to_do(folder: CheckpointFolder) -> None:
    path = save(folder, 10)
    (path / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"can't be read .*remove that folder"):
        folder.load(path, small_state(0))


def test_a_run_leaves_a_teacher_that_describes_itself(train: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = train("steps=3")
    newest = tmp_path / "run" / "checkpoints" / "step_0000003" / "teacher.pth"
    for file in (newest, tmp_path / "run" / "teacher.pth"):
        model = franca.load_model(checkpoint=file)
        assert not model.training
        for name, tensor in trainer.pair.teacher.backbone.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        told = describe(file)
        assert (told["arch"], told["stage"], told["step"], told["images_seen"]) == ("vit_tiny", "pretrain", 3, 12)
        assert told["heads"]["dino_head"]["prototypes"] == [4, 8, 16]
        assert told["data"] == trainer.config.data.path
        assert told["mean"] == trainer.config.data.crops.mean


def test_the_published_teacher_is_never_half_written(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At every moment at which a file could be seen, teacher.pth is absent or loads."""
    seen = []
    replace = os.replace

    def look(source: Any, target: Any) -> None:
        public = tmp_path / "run" / "teacher.pth"
        for moment in (lambda: replace(source, target), lambda: None):
            if public.exists():
                load_model(checkpoint=public)
                seen.append(describe(public)["step"])
            moment()

    monkeypatch.setattr(os, "replace", look)
    Trainer(tiny("steps=4")).run()
    assert sorted(set(seen)) == [0, 2, 4]


def test_the_teacher_is_published_where_hard_links_are_impossible(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    train("steps=2")
    assert describe(tmp_path / "run" / "teacher.pth")["step"] == 2


def test_a_resumed_run_publishes_the_teacher_that_a_kill_held_back(
    train: Callable[..., Trainer], tmp_path: Path
) -> None:
    train("steps=2")
    (tmp_path / "run" / "teacher.pth").unlink()
    train("steps=2")
    assert describe(tmp_path / "run" / "teacher.pth")["step"] == 2
