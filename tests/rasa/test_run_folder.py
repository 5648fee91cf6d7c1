"""What a run leaves in its folder: how it goes on from there, and which folders it refuses."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rasa.run
from franca.config import ConfigError, read_config
from franca.hub import save_teacher
from rasa.config import RasaConfig
from rasa.run import Result
from rasa.run import run as run_rasa
from rasa.run_folder import RunFolder

TINY = [
    *("device=cpu", "precision=fp32", "rounds=3", "saturation=0.0"),
    *("data.size=56", "data.views=4", "data.batch_size=16", "data.workers=0"),
    *("gradient.lr=0.05", "gradient.epochs=10", "gradient.batch_size=16", "evidence.crops=0"),
]


@pytest.fixture
def run(teacher: Path, images: Path, tmp_path: Path) -> Callable[..., Result]:
    """`run("key=value", …, output="run")`."""
    places = [f"backbone.name={teacher}", f"data.path={images}"]
    return lambda *arguments, output="run": run_rasa(
        read_config(RasaConfig, None, [*TINY, *places, f"output={tmp_path / output}", *arguments])
    )


def head_in(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "rasa.pth", weights_only=True)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "rasa.json").read_text())


def times_of(folder: Path) -> dict[Path, int]:
    """When each file was written last, but the lock that every run takes."""
    return {file: file.stat().st_mtime_ns for file in folder.iterdir() if file.name != ".lock"}


@pytest.mark.parametrize("solver", ["closed_form", "gradient"])
def test_a_run_that_was_interrupted_goes_on_to_the_same_head(
    solver: str,
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(f"solver={solver}", output="whole")
    save = RunFolder.save_round

    def save_and_stop(folder: RunFolder, made: Any) -> None:
        save(folder, made)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_round", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(f"solver={solver}")
    assert not (tmp_path / "run" / "rasa.pth").exists()
    caplog.clear()
    caplog.set_level("INFO")
    run(f"solver={solver}")
    assert re.findall(r"round (\d):", caplog.text) == ["2", "3"]
    torch.testing.assert_close(head_in(tmp_path / "run"), head_in(tmp_path / "whole"), rtol=0, atol=0)


def test_the_pass_over_the_images_is_not_made_again(
    run: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run("rounds=1")
    assert "images: 64 crops" in caplog.text
    caplog.clear()
    run("rounds=2")
    assert "crops in" not in caplog.text


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
def test_the_gradient_solver_leaves_no_cache(where: str, run: Callable[..., Result], tmp_path: Path) -> None:
    assert len(run("solver=gradient", "rounds=1", f"cache.where={where}").fit.rounds) == 1
    assert read_config(RasaConfig, tmp_path / "run" / "config.yaml").cache.where == where
    kept = {file.name for file in (tmp_path / "run").iterdir()} - {".lock"}
    assert kept == {"config.yaml", "rounds.pth", "rasa.pth", "rasa.json", "folded.pth"}


def test_more_rounds_extend_and_fewer_shorten(run: Callable[..., Result], tmp_path: Path) -> None:
    run("rounds=3", output="whole")
    for rounds in (1, 3):
        run(f"rounds={rounds}")
    whole = head_in(tmp_path / "whole")
    torch.testing.assert_close(head_in(tmp_path / "run"), whole, rtol=0, atol=0)
    run("rounds=2")
    shorter = head_in(tmp_path / "run")
    assert about(tmp_path / "run")["stopped"] == "all 2 rounds were made"
    torch.testing.assert_close(shorter["pos_pred.weight"], whole["pre_pos_layers.1.weight"], rtol=0, atol=0)
    run("rounds=3")
    torch.testing.assert_close(head_in(tmp_path / "run"), whole, rtol=0, atol=0)


def test_a_run_that_is_saturated_stays_so(run: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ["saturation=0.5", "rounds=8"]
    run(*arguments)
    first = about(tmp_path / "run")
    assert "% of chance" in first["stopped"]
    assert len(first["rounds"]) < 8
    run(*arguments, "rounds=1")
    assert about(tmp_path / "run")["stopped"] == "all 1 rounds were made"
    run(*arguments)
    assert about(tmp_path / "run") == first


@pytest.mark.parametrize("change", ["seed=1", "data.views=3", "saturation=0.2", "solver=gradient"])
def test_another_configuration_is_refused_and_the_folder_left(
    change: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    run()
    files = times_of(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"output=.*run. holds a RASA run that differs in "):
        run(change)
    assert times_of(tmp_path / "run") == files


@pytest.mark.parametrize("change", ["data.workers=1", "evidence.pictures=3", "cache.memory_gb=1"])
def test_what_changes_no_plane_may_change(change: str, run: Callable[..., Result], tmp_path: Path) -> None:
    run("rounds=1")
    run("rounds=3", output="whole")
    run("rounds=3", change)
    torch.testing.assert_close(head_in(tmp_path / "run"), head_in(tmp_path / "whole"), rtol=0, atol=0)


def test_another_backbone_under_the_same_name_is_refused(run: Callable[..., Result], teacher: Path) -> None:
    run()
    content = torch.load(teacher, weights_only=True)
    content["teacher"]["backbone.norm.weight"] *= 2
    save_teacher(teacher, content["teacher"], content["description"])
    with pytest.raises(ConfigError, match="differs in"):
        run()


def test_the_folder_of_something_else_is_refused_and_left(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "teacher.pth"):
        (tmp_path / "run" / name).write_text("of a pretraining run")
    with pytest.raises(ConfigError, match=r"run' holds files that no RASA run made, such as teacher\.pth: choose an"):
        run()
    assert (tmp_path / "run" / "config.yaml").read_text() == "of a pretraining run"


@pytest.mark.parametrize("name", ["rounds.pth", "moments.pth"])
def test_a_file_that_is_damaged_is_named(name: str, run: Callable[..., Result], tmp_path: Path) -> None:
    run("rounds=1")
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} can't be read .*: delete it to start anew"):
        run()


def test_what_is_written_can_be_read_again(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("solver=gradient")
    again = read_config(RasaConfig, tmp_path / "run" / "config.yaml")
    assert again == result.task.config
    told = about(tmp_path / "run")
    assert [one["position_error_held_out"] for one in told["rounds"]] == [
        one.held_out_error for one in result.fit.rounds
    ]
    assert (told["solver"], told["width"], told["dimensions_removed"]) == ("gradient", 32, 6)


def test_evidence_is_measured_on_images_that_decide_nothing(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    gather = rasa.run.gather
    monkeypatch.setattr(rasa.run, "gather", lambda *arguments: seen.append(arguments[1]) or gather(*arguments))
    task = run("evidence.crops=40", "evidence.share=0.4").task
    assert seen == [task.probe, task.test]
    assert set(task.probe.numbers).isdisjoint(task.test.numbers)
    assert {*task.probe.numbers, *task.test.numbers}.isdisjoint([*task.fit.numbers, *task.held_out.numbers])


def test_a_run_on_other_images_is_refused(run: Callable[..., Result], images: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(images, more)
    run(f"data.path={more}")
    shutil.copy(more / "cats" / "0.png", more / "cats" / "new.png")
    with pytest.raises(ConfigError, match="differs in the images: "):
        run(f"data.path={more}")


@pytest.mark.parametrize(
    ("change", "refused"),
    [("gradient.lr=0.1", False), ("cache.patches=3", False), ("precision=bf16", True), ("evidence.share=0.3", True)],
)
def test_what_the_closed_form_does_not_read_may_change(change: str, refused: bool, run: Callable[..., Result]) -> None:
    run("rounds=1")
    if not refused:
        assert len(run("rounds=2", change).fit.rounds) == 2
        return
    with pytest.raises(ConfigError, match="differs in"):
        run("rounds=2", change)


def test_a_second_process_changes_nothing_in_a_folder_at_work(run: Callable[..., Result], tmp_path: Path) -> None:
    run("rounds=1")
    before = times_of(tmp_path / "run")
    lines = ["import sys", "from pathlib import Path", "from franca.files import held"]
    lines += ["with held(Path(sys.argv[1])):", "    print('held', flush=True)", "    input()"]
    holder = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another process holds"):
            run("rounds=3")
        assert times_of(tmp_path / "run") == before
    finally:
        holder.communicate("\n")
