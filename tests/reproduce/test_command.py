"""The command as its user meets it: lines, table, files, exit status. Nothing is trained: see conftest.py."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from franca.eval.figures import can_draw
from franca.reproduce import command, run
from franca.reproduce import recipe as recipes
from franca.reproduce.__main__ import main
from franca.reproduce.errors import ReproduceError, Stopped
from franca.reproduce.record import read_record
from tests.reproduce.conftest import STEPS

Pretended = Any  # the class of conftest.py
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recorded(recipe: Path, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a recipe with a record of seeds 0, 1, 2, and a folder for one more run; nothing is drawn."""
    monkeypatch.setattr(command, "can_draw", lambda: False)
    assert main([str(recipe), "--record", "0,1,2", f"output={tmp_path / 'rec'}"]) == 0
    pretended.starts = 0
    return [str(recipe), f"output={tmp_path / 'run'}"]


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "reproduce.json").read_text())


def test_a_run_of_another_seed_is_reproduced(
    recorded: list[str], pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(command, "can_draw", can_draw)
    assert main([*recorded, "seed=5"]) == 0
    assert pretended.stops == 0, "a whole run ends by itself: a signal could meet it while it ends"
    said = capsys.readouterr().out
    assert said.count("  step ") == 20 * 5
    assert "reproduced: some (seed 5) learns as seeds 0, 1, 2 did" in said
    assert (tmp_path / "run" / "reproduce.png").read_bytes().startswith(b"\x89PNG")
    assert result(tmp_path)["verdict"] == "reproduced"
    assert len(result(tmp_path)["points"]) == 100


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(
    recorded: list[str], pretended: Pretended, tmp_path: Path, capsys: Capture
) -> None:
    def said(*more: str) -> list[str]:
        capsys.readouterr()
        assert main([*recorded, "seed=5", *more, "--dry-run"]) == 0
        return capsys.readouterr().out.splitlines()

    first, points = said("--until", "6")
    assert first == f"some, seed 5: from the beginning up to step 6 of 40, in {tmp_path / 'run'}"
    assert points.startswith("15 points are compared with seeds 0, 1, 2; the steps of a whole run took")
    assert pretended.starts == 0
    assert not (tmp_path / "run").exists()
    assert main([*recorded, "seed=5", "--until", "6"]) == 0
    notes = tmp_path / "run" / "reproduce.json"
    assert said("--until", "6")[0].startswith("some, seed 5: nothing would be trained, ")
    assert re.match(r"some, seed 5: from its last state on, behind or at step \d+, up to step 40 of 40, in ", said()[0])
    notes.unlink()
    assert said()[2:] == [
        "the run was made elsewhere, not begun by this command: its code, torch, device and images are unknown"
    ]
    assert main(["--dry-run"]) == 2


def test_a_recorded_seed_is_compared_with_its_own_curve_too(recorded: list[str], capsys: Capture) -> None:
    assert main(recorded) == 0
    said = capsys.readouterr().out
    assert "reproduced: some (seed 0)" in said
    own = re.search(r"from the recorded curve of seed 0 itself: at most (\S+) tolerances", said)
    assert own is not None
    assert float(own[1]) < 0.01, "the record keeps five digits"


def test_it_is_told_how_far_off_its_own_curve_a_run_is_where_it_is_farthest(
    recorded: list[str], recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(recorded) == 0
    metrics, record = tmp_path / "run" / "metrics.jsonl", read_record(recipe.parent / "recorded" / "some.json")
    lines = run.read_metrics(metrics)
    lines[9]["loss"] += record.tolerances["loss"][10]  # of two lines that the point of step 10 is the mean of
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    main(recorded)
    own = re.search(r"from the recorded curve of seed 0 itself: at most (\S+) tolerances", capsys.readouterr().out)
    assert own is not None
    assert float(own[1]) == pytest.approx(0.5, abs=0.01)


def test_a_term_that_is_switched_off_in_the_record_is_compared_too(
    recipe: Path, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(command, "can_draw", lambda: False)
    pretended.constant = {"koleo": 0.0}
    assert main([str(recipe), "--record", "0,1", f"output={tmp_path / 'rec'}"]) == 0
    assert main([str(recipe), "seed=2", f"output={tmp_path / 'off'}"]) == 0
    pretended.constant = {"koleo": 5.0}
    capsys.readouterr()
    assert main([str(recipe), "seed=2", f"output={tmp_path / 'run'}"]) == 1
    assert "koleo: first at step 2, recorded 0 ± 1e-06, now 5, " in capsys.readouterr().out
    assert [one["quantity"] for one in result(tmp_path)["quantities"] if not one["agrees"]] == ["koleo"]


@pytest.mark.parametrize("lr", [0.0, 5e-4, float("nan")])
def test_a_run_that_learns_otherwise_differs(
    lr: float, recorded: list[str], pretended: Pretended, tmp_path: Path, capsys: Capture
) -> None:
    pretended.lr = lr
    assert main([*recorded, "seed=5"]) == 1
    said = capsys.readouterr().out
    assert "differs: some (seed 5) does not learn as seeds 0, 1, 2 did" in said
    assert "loss: first at step " in said
    assert result(tmp_path)["verdict"] == "differs"


def test_the_beginning_alone_and_then_the_rest(
    recorded: list[str], pretended: Pretended, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*recorded, "--until", "9"]) == 0
    said = capsys.readouterr().out
    assert "its first 9 of 40 steps" in said
    assert "one point of each" not in said
    assert pretended.stops == 1
    lines = run.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9)), "it stops after the last recorded point, step 8"
    assert len(result(tmp_path)["points"]) == 4 * 5
    assert main(recorded) == 0
    assert pretended.starts == 2
    assert len(result(tmp_path)["points"]) == 20 * 5
    assert main([*recorded, "--until", "9"]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert pretended.starts == 2


def test_one_point_is_said_to_be_little(recorded: list[str], capsys: Capture) -> None:
    assert main([*recorded, "--until", "2"]) == 0
    assert "one point of each: so short a check finds what is grossly wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("evaluated", "given", "advice"),
    [
        ("folders of its own", [], "split in two: add data.path=FOLDER evaluation.train=FOLDER evaluation.test=FOLDER"),
        ("folders of its own", ["data.path=a"], "split in two: add evaluation.train=FOLDER evaluation.test=FOLDER"),
        (
            "the training images, split in two",
            ["evaluation.train=a", "evaluation.test=b"],
            "leave out evaluation.train=",
        ),
    ],
)
def test_other_scores_than_the_recorded_ones_are_refused_with_what_to_change(
    evaluated: str, given: list[str], advice: str, recorded: list[str], recipe: Path, capsys: Capture
) -> None:
    recipe.write_text(recipe.read_text() + "evaluation:\n  every: 40\n  image_size: 28\n")
    file = recipe.parent / "recorded" / "some.json"
    content = json.loads(file.read_text())
    content["evaluated"] = evaluated
    content["learned"] = {"steps": 40}
    file.write_text(json.dumps(content))
    assert main([*recorded, *given]) == 2
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; the same command continues"),
        (Stopped(signal.SIGINT, passed_on=True), 130, "stopped by SIGINT, passed on to the run as SIGTERM; the same"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; the same command continues"),
    ],
    ids=["SIGTERM", "SIGINT", "SIGINT before the run"],
)
def test_a_stopped_run_gives_the_signals_status_and_goes_on(
    error: Exception, status: int, words: str, recorded: list[str], pretended: Pretended, capsys: Capture
) -> None:
    pretended.error = error
    assert main(recorded) == status
    assert words in capsys.readouterr().err
    pretended.error = None
    assert main(recorded) == 0


def test_a_failed_run_is_an_error(recorded: list[str], pretended: Pretended, capsys: Capture) -> None:
    pretended.error = ReproduceError("the training process ended")
    assert main(recorded) == 2
    assert "error: the training process ended" in capsys.readouterr().err


def test_a_run_of_other_code_is_not_taken_for_this_ones(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main(recorded) == 0
    monkeypatch.setattr(run, "code_hash", lambda: "changed")
    assert main(recorded) == 2
    said = capsys.readouterr().err
    assert "was begun with another state of things: code" in said
    assert "remove the folder" in said


def test_a_run_on_other_images_is_not_taken_for_this_ones(recorded: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main([*recorded, "--until", "9"]) == 0
    notes = tmp_path / "run" / "reproduce.json"
    notes.write_text(notes.read_text().replace('"images": 20', '"images": 21'))
    assert main(recorded) == 2
    assert "images 21 there, 20 here" in capsys.readouterr().err


def test_a_run_that_another_command_made_is_compared_and_said_to_be_so(
    recorded: list[str], recipe: Path, pretended: Pretended, tmp_path: Path, capsys: Capture
) -> None:
    pretended(["--config", str(recipe), f"output={tmp_path / 'run'}"], print).run(lambda: False)
    assert main([*recorded]) == 0
    assert "made elsewhere, not begun by this command: its code, torch" in capsys.readouterr().out
    assert result(tmp_path)["made_elsewhere"] is True
    assert set(result(tmp_path)["begun_with"].values()) == {"unknown"}
    assert main([*recorded]) == 0
    assert result(tmp_path)["made_elsewhere"] is True, "also when it is looked at again"


def test_a_record_of_runs_that_another_command_made_claims_nothing_of_them(
    recipe: Path, pretended: Pretended, tmp_path: Path
) -> None:
    folder = tmp_path / "rec"
    pretended(["--config", str(recipe), "seed=1", f"output={folder}-seed1"], print).run(lambda: False)
    assert main([str(recipe), "--record", "0,1", f"output={folder}"]) == 0
    assert set(read_record(recipe.parent / "recorded" / "some.json").facts.values()) == {"unknown"}


def test_a_recipe_that_was_edited_is_not_compared(recorded: list[str], recipe: Path, capsys: Capture) -> None:
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    assert main(recorded) == 2
    assert "has changed since its curve was recorded (teacher.momentum: 0.9 recorded, 0.8 now)" in (
        capsys.readouterr().err
    )


def test_what_differs_from_the_record_is_said(recorded: list[str], recipe: Path, capsys: Capture) -> None:
    file = recipe.parent / "recorded" / "some.json"
    file.write_text(file.read_text().replace('"images": 20', '"images": 9469'))
    assert main(recorded) == 0, "other images differ by the curve alone"
    said = capsys.readouterr().out
    assert "reproduced, with other images: some (seed 0)" in said
    assert "WARNING: these are not the images that were recorded (images: " in said
    assert json.loads((recipe.parent / "run" / "reproduce.json").read_text())["other_images"] is True
    assert "differs from the record: images: 20 here, 9469 recorded" in said


def test_without_matplotlib_there_is_a_word_in_place_of_the_picture(
    recorded: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main(recorded) == 0
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "run" / "reproduce.png").exists()


def test_recording_says_the_tolerances_and_goes_on_where_it_stopped(
    recipe: Path, pretended: Pretended, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [str(recipe), "--record", "3,4", f"output={tmp_path / 'rec'}"]
    pretended.error = Stopped(signal.SIGINT)
    assert main(arguments) == 130
    pretended.error = None
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "3 s sqrt(1 + 1/R)" in said
    assert "loss: 0.0" in said
    assert "two seeds say little of a spread" in said
    record = read_record(recipe.parent / "recorded" / "some.json")
    assert list(record.seeds) == [3, 4]
    assert record.minutes == pytest.approx(40 * 4 / 2.0 / 60, rel=1e-4)
    assert record.facts["images"] == 20
    assert main(arguments) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert "nothing was trained" in capsys.readouterr().out


def test_a_record_holds_no_run_that_was_not_finite(recipe: Path, pretended: Pretended, capsys: Capture) -> None:
    pretended.lr = float("nan")
    assert main([str(recipe), "--record", "0,1", f"output={recipe.parent / 'rec'}"]) == 2
    assert "seed 0 was not finite at step 2" in capsys.readouterr().err


def test_a_record_that_could_not_be_written_is_refused_before_anything_trains(
    recipe: Path, pretended: Pretended, capsys: Capture
) -> None:
    (recipe.parent / "recorded").write_text("in the way")
    assert main([str(recipe), "--record", "0,1", f"output={recipe.parent / 'rec'}"]) == 2
    assert (
        f"error: the record is to lie in {recipe.parent / 'recorded'}, which can't be written"
        in capsys.readouterr().err
    )
    assert pretended.starts == 0


def test_a_recipe_too_short_for_a_point_is_refused_before_it_trains(
    recipe: Path, pretended: Pretended, capsys: Capture
) -> None:
    recipe.write_text(recipe.read_text().replace("every: 1\n", f"every: {STEPS + 1}\n"))
    assert main([str(recipe), "--record", "0,1", f"output={recipe.parent / 'rec'}"]) == 2
    words = f"error: {recipe}: with steps=40 and log.every=41 a run ends before its first line of losses"
    assert words in capsys.readouterr().err
    assert pretended.starts == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--force"], "belong to --record"),
        (["--record", "0"], "one seed tells no spread"),
        (["--record", "0,0"], "each once"),
        (["--record", "0,1", "--until", "3"], "no --until, no --dry-run"),
        (["--record", "0,1", "--dry-run"], "no --until, no --dry-run"),
        (["--record", "0,1", "--tolerance", "loss"], "QUANTITY=VALUE"),
        (["--until", "0"], "1 or more"),
        (["--until", "1"], "the first recorded point is that of step 2"),
        (["--until", "999"], "steps; without --until all are run"),
        (["steps=3"], "another run"),
        (
            ["steps=3", "optimizer.warmup_steps=5"],
            "must be below steps=3: shorten the warm-up with the run. Besides, steps=3",
        ),
        (["steps=3"], "--until STEP compares the beginning alone"),
        (["precison=fp32"], "precision"),
        (["data.path"], "not of the form key=value"),
    ],
)
def test_what_can_not_be_done_is_an_error(
    arguments: list[str], words: str, recorded: list[str], capsys: Capture
) -> None:
    assert main([*recorded, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_without_a_name_it_lists_what_is_recorded(
    recorded: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (recipe.parent / "other.yaml").touch()
    monkeypatch.setattr(recipes, "RECIPES", recipe.parent)
    capsys.readouterr()
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"some +0, 1, 2 +1 +loss 4\.\d{3} +CPU: .+ threads?, fp32, torch ", lines[1])
    assert lines[2].startswith("minutes: of the steps alone")
    assert lines[3] == "not recorded yet: other"
