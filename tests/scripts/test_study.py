"""scripts/study.py: what it plans, that it goes on where it was stopped, and what it makes of the numbers."""

import json
import re
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import study as script
from franca.config import ConfigError, dump_config, read_config
from franca.eval.errors import EvalError
from studies import pictures, running
from studies.checks import require_runnable
from studies.config import ColumnConfig, CurveConfig, RungConfig, StudyConfig, read_study
from studies.plan import Task, plan, require_parts, with_needs
from studies.results import Entry, StudyResults, difference, gather, missing, not_found, read
from studies.running import Runner
from studies.tables import FAILED, NOT_FOUND, NOT_RUN, page, places_of, put_into
from tests.programs import FAILS, IGNORES, OBEYS, SAVES, sent_when
from tests.tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
ANYWHERE = {"imagenette": Path("/data/imagenette"), "camvid": Path("/data/camvid")}


def given_folders(folder: Path) -> list[str]:
    """Options that give a folder, made into one with two splits, to every name that a shipped study asks for."""
    for split in ("train", "val"):
        (folder / split).mkdir(exist_ok=True)
    return [f"--data={name}={folder}" for name in ANYWHERE]


def small_study(**changes) -> StudyConfig:
    rungs = {
        "first": RungConfig(label="first", train=["optimizer.lr=1e-3"]),
        "second": RungConfig(label="second", train=["optimizer.lr=2e-3"], after="first", against=["first"]),
        "third": RungConfig(label="third", rasa=[], after="second", scores=["score"]),
    }
    columns = {
        "score": ColumnConfig(label="score", score="score", metric="top1", settings={"k": 20}),
        "loss": ColumnConfig(label="loss", score="training", metric="loss"),
    }
    asked = {"score": ["knn", "--data", "folder:{imagenette}"]}
    return replace(
        StudyConfig(config="configs/recipes/quickstart.yaml", seeds=[0, 1], rungs=rungs, scores=asked, columns=columns),
        **changes,
    )


def test_a_seeds_whole_ladder_comes_before_the_next_seeds(tmp_path: Path) -> None:
    tasks = plan(small_study(), tmp_path, ANYWHERE)
    assert [(task.seed, task.rung, task.kind) for task in tasks] == [
        (seed, rung, kind)
        for seed in (0, 1)
        for rung, kind in (
            ("first", "train"), ("first", "score"), ("second", "train"), ("second", "score"), ("third", "rasa"),
            ("third", "score"),
        )
    ]  # fmt: skip
    for number, task in enumerate(tasks):
        assert all(need in tasks[:number] for need in task.needs)
    assert len({task.folder for task in tasks}) == len(tasks)


def test_a_rung_begins_with_the_network_of_the_one_before_and_the_same_seed(tmp_path: Path) -> None:
    first, _, second, score, rasa, last = plan(small_study(), tmp_path, ANYWHERE)[6:]
    assert f"init_from={first.output / 'teacher.pth'}" in second.command
    assert "seed=1" in second.command
    assert ("--model", str(second.output / "teacher.pth")) == score.command[5:7]
    assert f"backbone.name={second.output / 'teacher.pth'}" in rasa.command
    assert str(rasa.output / "rasa.pth") in last.command
    assert "folder:/data/imagenette" in last.command


def test_what_a_change_concerns_is_another_task_and_nothing_else_is(tmp_path: Path) -> None:
    rungs = small_study().rungs
    changed = small_study(rungs=rungs | {"second": replace(rungs["second"], train=["optimizer.lr=3e-3"])})
    before, after = (plan(each, tmp_path, ANYWHERE)[:6] for each in (small_study(), changed))
    same = [one.folder == other.folder for one, other in zip(before, after, strict=True)]
    assert same == [True, True, False, False, False, False]


def test_the_same_study_elsewhere_has_the_same_names(tmp_path: Path) -> None:
    data = {name: Path("/elsewhere") for name in ANYWHERE}
    here, there = plan(small_study(), tmp_path / "here", ANYWHERE), plan(small_study(), tmp_path / "there", data)
    assert [task.folder.name for task in here] == [task.folder.name for task in there]


def test_another_recipe_under_the_same_name_is_another_task(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    digests = []
    for text in ("steps: 10", "steps: 20", "# a comment\nsteps: 20"):
        recipe.write_text(text)
        digests.append({task.digest for task in plan(small_study(config=str(recipe)), tmp_path, ANYWHERE)})
    assert not digests[0] & digests[1]
    assert digests[1] == digests[2]
    recipe.write_text("steps: [1")
    with pytest.raises(ConfigError, match="can't be read as YAML"):
        plan(small_study(config=str(recipe)), tmp_path, ANYWHERE)
    recipe.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        plan(small_study(config=str(recipe)), tmp_path, ANYWHERE)


@pytest.mark.parametrize(
    ("rungs", "says"),
    [
        ({"one": {"train": [], "model": "pixels"}}, "give one of train, rasa and model"),
        ({"one": {"train": [], "after": "two"}, "two": {"train": []}}, "no 'two' there"),
        ({"one": {"rasa": []}}, "rasa needs after"),
        ({"one": {"train": [], "scores": ["knn"]}}, "no 'knn' there"),
        ({"One": {"train": []}}, "names of rungs"),
        ({"one": {"train": [], "against": ["one"]}}, "rungs.one.against: no 'one' there"),
        ({"one": {"train": []}, "two": {"train": [], "against": ["one", "one"]}}, "'one' stands there twice"),
        ({"one": {"train": [], "seeds": []}}, r"rungs.one.seeds=\[\]: give one or more"),
        ({"one": {"train": [], "seeds": [1, 1]}}, r"rungs.one.seeds=\[1, 1\]: .* each once"),
    ],
)
def test_what_cannot_be_asked_is_refused(rungs: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_config(StudyConfig, preset={"rungs": rungs})


def test_a_column_knows_which_numbers_are_better() -> None:
    with pytest.raises(ConfigError, match="column 'loss': better='smaller'; give one of 'higher', 'lower', ''"):
        ColumnConfig("loss", "training", "loss", better="smaller")


def test_a_folder_that_nobody_named_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data imagenette=FOLDER"):
        plan(small_study(), tmp_path, {})


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_command_of_a_shipped_study_can_be_run(file: Path, tmp_path: Path) -> None:
    """Its configurations load, its layouts, protocols and settings are there."""
    require_runnable(plan(read_study(file, []), tmp_path, ANYWHERE))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": ["objective.kolo_weight=0"]}, "rung first, train: .*kolo_weight"),
        ({"train": ["steps=-6"]}, "rung first, train: steps=-6"),
        ({"rasa": ["round=2"]}, "rung third, rasa: .*round"),
        ({"scores": {"score": ["posbias", "--data", "folder:{imagenette}"]}}, "invalid choice: 'posbias'"),
        ({"scores": {"score": ["knn", "--data", "foldr:{imagenette}"]}}, "rung first, score: .*did you mean folder:"),
        (
            {"scores": {"score": ["knn", "--data", "segmentation_folder:{imagenette}"]}},
            "is a data set of segmentation, and classification",
        ),
        (
            {"scores": {"score": ["linear", "--data", "folder:{imagenette}", "--train-data", "foldr:x"]}},
            "rung first, score: .*did you mean folder:",
        ),
        ({"scores": {"score": ["knn", "--help"]}}, "rung first, score: knn --help .*runs nothing"),
        ({"scores": {"score": ["knn", "--data", "folder:{imagenette}", "k=20"]}}, "rung first, score: .*Key 'k'"),
        ({"scores": {"score": ["knn", "--data", "folder:{imagenette}", "--slice", "d/x"]}}, "--slice d/x: give d"),
        (
            {"rungs": {"none": RungConfig(model="pixls")}},
            r"rung none, score: --model pixls: there is no such model or file \(did you mean pixels",
        ),
        (
            {"rungs": small_study().rungs | {"last": RungConfig(model="untraned:{after}", after="first")}},
            "rung last, score: --model untraned:.*there is no such model",
        ),
    ],
)
def test_what_a_task_could_not_do_is_said_before_anything_runs(
    changes: dict, says: str, tmp_path: Path, capsys
) -> None:
    with pytest.raises(ConfigError, match=says):
        require_runnable(plan(small_study(**changes), tmp_path, ANYWHERE))
    assert capsys.readouterr().err == "", "said once, by the error"


def tasks_of(folder: Path, *programs: str) -> list[Task]:
    """Tasks that run Python programs, the second and later ones behind the first."""
    first = Task("rung", 0, "train", "digest", ("-c", programs[0]), folder / "0")
    return [first] + [
        Task("rung", 0, f"score_{number}", "digest", ("-c", program), folder / str(number), (first,))
        for number, program in enumerate(programs[1:], 1)
    ]


def run(tasks: list[Task], jobs: int = 2, seconds: float = 60.0) -> int:
    facts = {"device": "a device", "precision": "fp32", "torch": "2", "commit": "c"}
    return Runner(tasks, jobs, seconds, facts, before=0).run()


def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path: Path, capsys) -> None:
    counts = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    fails = f"import os, sys; sys.exit(0 if os.path.exists({str(tmp_path / 'mended')!r}) else 'the disk is full')"
    tasks = tasks_of(tmp_path, counts, fails, counts)
    assert run(tasks) == 1
    assert "rung, seed 0: score_1: FAILED with status 1: the disk is full" in capsys.readouterr().err
    assert [task.finished for task in tasks] == [True, False, True]
    assert [task.failed for task in tasks] == [False, True, False]
    (tmp_path / "mended").touch()
    assert run(tasks) == 0
    assert not tasks[1].failed
    assert (tmp_path / "count").read_text() == "xx"
    assert running.told(tasks[0])["commit"] == "c"


def test_what_need_not_be_run_counts_as_finished_in_what_is_said(tmp_path: Path, capsys) -> None:
    tasks = tasks_of(tmp_path, "", "")
    assert Runner(tasks, 1, 60.0, {}, before=10).run() == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["[10/12]", "[11/12]", "[11/12]", "[12/12]"]
    assert run(tasks) == 0
    assert capsys.readouterr().err == ""


def test_nothing_begins_before_what_it_needs_has_ended(tmp_path: Path) -> None:
    slow = f"import time; time.sleep(0.5); open({str(tmp_path / 'made')!r}, 'w')"
    needs = f"open({str(tmp_path / 'made')!r})"
    tasks = tasks_of(tmp_path, slow, needs)
    assert run(tasks, jobs=2) == 0
    broken = tasks_of(tmp_path / "broken", "raise SystemExit(3)", needs)
    assert run(broken) == 1
    assert not broken[1].folder.exists()


WRITES = """
import signal, sys, time
def save(*_):
    open(sys.argv[1], "a").write("saved ")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""


def saving(tmp_path: Path) -> list[Task]:
    """A training that saves when it is asked to stop, and ends at once where it had saved."""
    ends = f"import os, sys\nif os.path.exists({str(tmp_path / 'state')!r}): sys.exit(0)\nsys.argv[1:] = "
    return tasks_of(tmp_path, f"{ends}[{str(tmp_path / 'state')!r}]\n{WRITES}")


def test_time_that_is_over_stops_and_saves_and_the_next_call_goes_on(tmp_path: Path, capsys) -> None:
    (task,) = saving(tmp_path)
    assert run([task], seconds=2.0) == running.MORE
    assert (tmp_path / "state").read_text() == "saved "
    assert not task.finished
    assert "stopped after" in capsys.readouterr().err
    assert run([task]) == 0
    assert task.finished
    assert float(running.told(task)["seconds"]) > 2.0  # both stretches


def test_what_failed_says_its_whole_error_of_this_try(tmp_path: Path, capsys) -> None:
    (told,) = tasks_of(tmp_path, "raise SystemExit('step 3\\nerror: PATH is no folder:\\n  give\\n  one')")
    assert run([told]) == 1
    assert "FAILED with status 1: PATH is no folder: give one (all of it in " in capsys.readouterr().err
    (silent,) = tasks_of(tmp_path, "raise SystemExit('a traceback')")
    assert run([silent]) == 1
    assert "FAILED with status 1: a traceback (all" in capsys.readouterr().err


def test_a_signal_stops_and_saves(tmp_path: Path) -> None:
    (task,) = saving(tmp_path)
    threading.Timer(2.0, lambda: signal.raise_signal(signal.SIGINT)).start()
    began = time.monotonic()
    assert run([task]) == 128 + signal.SIGINT
    assert time.monotonic() - began < 30
    assert (tmp_path / "state").read_text() == "saved "
    assert not task.failed


def test_what_someone_else_stops_has_not_failed_and_is_left_for_the_next_call(tmp_path: Path, capsys) -> None:
    (task,) = tasks_of(tmp_path, "import os; os.kill(os.getpid(), 15)")
    assert run([task]) == running.MORE
    assert capsys.readouterr().err.count("stopped after") == 1
    assert not task.failed


def all_up(tasks: list[Task]) -> Callable[[], bool]:
    """Whether each has said something."""
    logs = [task.folder / running.LOG for task in tasks]
    return lambda: all(log.exists() and log.stat().st_size for log in logs)


def test_what_fails_while_it_saves_has_failed(tmp_path: Path, capsys) -> None:
    tasks = tasks_of(tmp_path, FAILS)
    with sent_when(all_up(tasks), signal.SIGTERM):
        assert run(tasks) == 128 + signal.SIGTERM
    assert "FAILED with status 1: the disk is full" in capsys.readouterr().err
    assert tasks[0].failed


def test_what_does_not_save_in_time_is_killed_and_left(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.2)
    tasks = tasks_of(tmp_path, IGNORES)
    with sent_when(all_up(tasks), signal.SIGTERM):
        assert run(tasks) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "killed before it had saved" in said
    assert "FAILED" not in said
    assert not tasks[0].failed


def test_the_time_of_a_neighbour_that_saves_is_not_counted(tmp_path: Path) -> None:
    slow, quick = tasks_of(tmp_path, SAVES)[0], replace(tasks_of(tmp_path, OBEYS)[0], folder=tmp_path / "quick")
    with sent_when(all_up([slow, quick]), signal.SIGTERM):
        run([slow, quick])
    seconds = [float((task.folder / running.SECONDS).read_text()) for task in (slow, quick)]
    assert seconds[0] - seconds[1] > 0.6


def test_a_terminal_that_is_gone_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(*_, **__) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr("builtins.print", fail)
    tasks = tasks_of(tmp_path, "", "raise SystemExit(2)", "")
    assert run(tasks) == 1
    assert [task.finished for task in tasks] == [True, False, True]


def test_a_failure_is_forgotten_once_its_task_goes_on(tmp_path: Path) -> None:
    """It was mended, and then stopped by time: here, and in what was recorded of the failure."""
    tasks = plan(small_study(), tmp_path / "here", ANYWHERE)
    (failing,) = broken = [replace(tasks[0], command=("-c", "raise SystemExit(2)"))]
    assert run(broken) == 1
    recorded = gather(small_study(), tasks, StudyResults())
    assert recorded.failed == [failing.identity]
    assert run([replace(failing, command=("-c", OBEYS))], seconds=1.0) == running.MORE
    assert not failing.failed
    assert gather(small_study(), tasks, recorded).failed == []
    elsewhere = plan(small_study(), tmp_path / "there", ANYWHERE)
    assert gather(small_study(), elsewhere, recorded).failed == recorded.failed


def finished_study(folder: Path) -> tuple[StudyConfig, StudyResults]:
    """Of the small study, rungs first and second with both seeds, third not run; scores made up."""
    config, made_up = small_study(), {("first", 0): 40.0, ("first", 1): 41.0, ("second", 0): 42.0, ("second", 1): 43.5}
    tasks = plan(config, folder, ANYWHERE)
    for task in tasks:
        if task.rung != "third":
            task.output.mkdir(parents=True)
            done = {"seconds": 90, "device": "CPU", "precision": "bf16", "torch": "2.14", "commit": "abc"}
            (task.folder / "done.json").write_text(json.dumps(done))
            if task.kind == "score":
                value = made_up[task.rung, task.seed]
                scores = [
                    {"metric": "top1", "value": value - less, "slice": name, "settings": {"k": k, "voting": "soft"}}
                    for k in (10, 20)
                    for name, less in (("d", 0.0 if k == 20 else 9.0), ("d/2", 1.0))
                ]
                (task.output / "knn-x").mkdir()
                content = {"format": 1, "origin": {"protocol": "knn"}, "scores": scores}
                (task.output / "knn-x" / "results.json").write_text(json.dumps(content))
    return config, gather(config, tasks, StudyResults())


def test_numbers_are_found_by_their_settings_for_each_seed_and_slice(tmp_path: Path) -> None:
    _, results = finished_study(tmp_path)
    assert results.by_slice("first", "score") == {0: {"d": 40.0, "d/2": 39.0}, 1: {"d": 41.0, "d/2": 40.0}}
    assert results.by_slice("third", "score") == {}
    assert results.minutes("second") == [1.5, 1.5]
    results.write(tmp_path / "results.json")
    assert read(tmp_path / "results.json") == results


def test_a_finished_score_without_results_is_an_error(tmp_path: Path) -> None:
    config, _ = finished_study(tmp_path)
    tasks = plan(config, tmp_path, ANYWHERE)
    next(tmp_path.glob("first-0-score-*/output/*/results.json")).unlink()
    with pytest.raises(EvalError, match="holds no results"):
        gather(config, tasks, StudyResults())


def test_recorded_numbers_are_kept_and_only_the_rest_is_run(tmp_path: Path) -> None:
    """On another machine, without the folders; a rung that was changed since, and all behind it, is run again."""
    _, recorded = finished_study(tmp_path / "here")
    config, there = small_study(), tmp_path / "there"
    rungs, tasks = config.rungs, plan(config, there, ANYWHERE)
    assert {(task.rung, task.kind) for task in missing(tasks, tasks, recorded)} == {
        ("first", "train"), ("second", "train"), ("third", "rasa"), ("third", "score"),
    }  # fmt: skip
    assert gather(config, tasks, recorded) == recorded == recorded.of(tasks)
    changed = replace(config, rungs=rungs | {"second": replace(rungs["second"], train=["optimizer.lr=3e-3"])})
    tasks = plan(changed, there, ANYWHERE)
    assert ("second", "score") in {(task.rung, task.kind) for task in missing(tasks, tasks, recorded)}
    kept = gather(changed, tasks, recorded)
    assert kept == recorded  # nothing is lost before it is run again,
    assert {entry.rung for entry in kept.of(tasks).entries} == {"first"}  # and nothing old is shown
    without = replace(config, rungs={name: rungs[name] for name in ("first", "second")})
    tasks = plan(without, there, ANYWHERE)
    assert missing(tasks, tasks, recorded) == []


def test_numbers_of_other_seeds_stay_in_the_file(tmp_path: Path) -> None:
    _, recorded = finished_study(tmp_path)
    tasks = plan(small_study(seeds=[0]), tmp_path / "there", ANYWHERE)
    kept = gather(small_study(seeds=[0]), tasks, recorded)
    assert {entry.seed for entry in kept.entries} == {0, 1}
    assert {entry.seed for entry in kept.of(tasks).entries} == {0}


def test_what_is_asked_for_brings_what_it_needs(tmp_path: Path) -> None:
    tasks = plan(small_study(seeds=[0]), tmp_path, ANYWHERE)
    assert with_needs([tasks[-1]]) == {task for task in tasks if task.kind in ("train", "rasa")} | {tasks[-1]}


def test_what_was_scored_needs_its_training_no_more(tmp_path: Path) -> None:
    config, _ = finished_study(tmp_path)
    tasks = [task for task in plan(config, tmp_path, ANYWHERE) if task.rung != "third"]
    assert missing(tasks, [task for task in tasks if task.kind == "score"], StudyResults()) == []


def test_the_table_shows_spread_and_what_was_not_run(tmp_path: Path) -> None:
    config, results = finished_study(tmp_path)
    lines = page(config, results).splitlines()
    assert f"| first | 40.5 ± 0.7 | {NOT_FOUND} | 2 | 1.5 |" in lines
    assert f"| third | {NOT_RUN} |  | 0 of 2 |  |" in lines  # it trains nothing: no loss to be asked for
    assert "| second against first | +2.2 ± 0.4 |  |" in lines  # of two seeds, 12.7 standard errors would be needed
    assert lines[-1] == "Run on CPU, bf16 (torch 2.14; commit abc)."
    more = replace(config, seeds=[0, 1, 2])
    assert f"| first | 40.5 ± 0.7 | {NOT_FOUND} | 2 of 3 | 1.5 |" in page(more, results).splitlines()
    results.entries.append(Entry("first", 2, "train", "", 0, 1.5, {"loss": {"d": 9.0}}))
    assert "| first | 40.5 ± 0.7 (2) | 9.0 (1) | 3 | 1.5 |" in page(more, results).splitlines()


def test_a_number_that_finished_tasks_do_not_have_is_told_with_those_that_they_have(tmp_path: Path) -> None:
    config, results = finished_study(tmp_path)
    tasks = plan(config, tmp_path, ANYWHERE)
    score = config.columns["score"]
    assert not_found(replace(config, columns={"score": score}), tasks, results) == []
    (tasks[0].output / "metrics.jsonl").write_text('{"step": 1, "koleo": 0.1, "loss": null}\n')
    asked = {**config.columns, "mean": replace(score, settings={"k": 7}), "narrow": replace(score, slice="d/4")}
    config = replace(config, columns=asked)
    there = "top1 k=10 voting=soft d, d/2, top1 k=20 voting=soft d, d/2"
    assert not_found(config, tasks, gather(config, tasks, StudyResults())) == [
        "columns.loss: no loss d in what training gave; there are koleo, loss, step",
        f"columns.mean: no top1 k=7 d in what score gave; there are {there}",
        f"columns.narrow: no top1 k=20 d/4 in what score gave; there are {there}",
    ]
    elsewhere = not_found(config, plan(config, tmp_path / "elsewhere", ANYWHERE), results)
    assert "columns.mean: no top1 k=7 d in what score gave; it was recorded without" in elsewhere[1]


def test_a_study_whose_column_finds_no_number_ends_as_wrong(tmp_path: Path, capsys) -> None:
    config, _ = finished_study(tmp_path / "runs")
    file, command = tmp_path / "some.yaml", [str(tmp_path / "runs"), f"--data=imagenette={tmp_path}", "--only", "first"]
    found = replace(config, columns={"score": config.columns["score"]})
    file.write_text(dump_config(found))
    assert script.main([str(file), *command]) == 0
    assert capsys.readouterr().err == ""
    file.write_text(dump_config(config))
    assert script.main([str(file), *command]) == 2
    said = capsys.readouterr()
    assert "| first | 40.5 ± 0.7 | not found |" in said.out, "what is there is reported all the same"
    assert said.err == "error: columns.loss: no loss d in what training gave; it has none\n"


def study_with_results(tmp_path: Path) -> list[str]:
    """The script's arguments for rung first of the small study, which is finished."""
    config, _ = finished_study(tmp_path / "runs")
    (tmp_path / "some.yaml").write_text(dump_config(replace(config, columns={"score": config.columns["score"]})))
    return [str(tmp_path / "some.yaml"), str(tmp_path / "runs"), "--only", "first"]


def test_what_another_process_recorded_meanwhile_stays_in_the_file(tmp_path: Path, monkeypatch) -> None:
    command, file = study_with_results(tmp_path), tmp_path / "results.json"
    other = Entry("other", 0, "train", "digest", 0, 1.0, {"loss": {"d": 1.0}})

    def run_while_another_ends(self: Runner) -> int:
        StudyResults([other], [{"device": "CPU", "precision": "bf16", "torch": "2.14", "commit": "abc"}]).write(file)
        return 0

    monkeypatch.setattr(Runner, "run", run_while_another_ends)
    assert script.main([*command, f"--data=imagenette={tmp_path}", f"--results={file}"]) == 0
    assert {entry.rung for entry in read(file).entries} == {"first", "second", "other"}


def test_numbers_of_other_data_are_refused_and_those_of_other_code_told(tmp_path: Path, caplog, capsys) -> None:
    command = study_with_results(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(b"image")
    was = script.fingerprints({"imagenette": tmp_path / "images"})["imagenette"]
    for note in (tmp_path / "runs").glob("*/done.json"):
        note.write_text(json.dumps(json.loads(note.read_text()) | {"imagenette": was}))
    command += [f"--data=imagenette={tmp_path / 'images'}"]
    (tmp_path / "images" / ".hidden.db").write_bytes(b"of a file browser")
    assert script.main(command) == 0
    assert "WARNING" not in caplog.text
    note = next((tmp_path / "runs").glob("first-0-score-*/done.json"))
    note.write_text(json.dumps(json.loads(note.read_text()) | {"commit": "def"}))
    assert script.main(command) == 0
    assert "of several commits (abc, def)" in caplog.text
    (tmp_path / "images" / "one.png").write_bytes(b"another image")
    now = script.fingerprints({"imagenette": tmp_path / "images"})["imagenette"]
    elsewhere = [command[0], str(tmp_path / "elsewhere"), *command[2:], f"--results={tmp_path / 'runs' / 'some.json'}"]
    for again, origin in ((command, tmp_path / "runs"), (elsewhere, "--results")):
        assert script.main(again) == 2
        said = capsys.readouterr().err
        assert f"--data imagenette: this folder has {now}, but what {origin} holds is of {was}" in said


def test_the_picture_has_every_seed_their_mean_and_the_slices_in_order(tmp_path: Path, monkeypatch) -> None:
    config, results = finished_study(tmp_path)
    drawn = Figure()
    monkeypatch.setattr(pictures, "figure", lambda *_: nullcontext(drawn))
    curves = [CurveConfig("by slice", "score", ["first", "second"])]
    assert pictures.draw(tmp_path / "none.png", replace(config, curves=curves), results)
    by_rung, over_slices = (axis for axis in drawn.axes if axis.get_visible())
    bars, dots = by_rung.lines[::2], by_rung.lines[1::2]
    assert [tick.get_text() for tick in by_rung.get_yticklabels()] == ["first", "second"]
    assert [list(line.get_xdata()) for line in dots] == [[40.0, 41.0], [42.0, 43.5]]
    assert [list(line.get_xdata()) for line in bars] == [[40.5, 40.5], [42.75, 42.75]]
    heights = [list(line.get_ydata()) for line in dots]
    assert heights == [[tick] * 2 for tick in by_rung.get_yticks()], "each in the line of its name"
    assert [tick.get_text() for tick in over_slices.get_xticklabels()] == ["d", "d/2"]
    means = [list(bars.lines[0].get_ydata()) for bars in over_slices.containers]
    assert means == [[40.5, 39.5], [42.75, 41.75]]


def test_a_rung_is_compared_with_each_that_it_names(tmp_path: Path) -> None:
    config, results = finished_study(tmp_path)
    rungs = config.rungs | {"again": config.rungs["first"]}
    rungs["second"] = replace(rungs["second"], against=["first", "again"])
    results.entries += [replace(entry, rung="again") for entry in results.entries if entry.rung == "second"]
    lines = page(replace(config, rungs=rungs), results).splitlines()
    assert "| second against first | +2.2 ± 0.4 |  |" in lines
    assert "| second against first | +0.0 ± 0.0 |  |" in lines, "again bears the same label"


def test_a_curve_is_a_table_of_all_slices(tmp_path: Path) -> None:
    config, results = finished_study(tmp_path)
    curves = [CurveConfig("by slice", "score", ["second", "first", "third"]), CurveConfig("none", "loss", ["first"])]
    text = page(replace(config, curves=curves), results)
    assert (
        "| by slice | d | d/2 | seeds |\n| --- | --- | --- | --- |\n"
        "| second | 42.8 ± 1.1 | 41.8 ± 1.1 | 2 |\n| first | 40.5 ± 0.7 | 39.5 ± 0.7 | 2 |\n\n"
    ) in text
    assert "none" not in text


def test_the_table_shows_what_failed(tmp_path: Path) -> None:
    """The training of a rung keeps back all its numbers, a score its own; a rung that waited for it was not run."""
    config, _ = finished_study(tmp_path)
    third, score = (next(t for t in plan(config, tmp_path, ANYWHERE) if t.rung == "third" and t.kind == kind)
                    for kind in ("rasa", "score"))  # fmt: skip
    third.folder.mkdir()
    (third.folder / "failed.txt").write_text("status 1: the disk is full\n")
    failed = gather(config, plan(config, tmp_path, ANYWHERE), StudyResults())
    failed.write(tmp_path / "failed.json")
    assert read(tmp_path / "failed.json") == failed
    assert "disk" not in (tmp_path / "failed.json").read_text(), "what a log says may name this machine's folders"
    assert f"| third | {FAILED} |  | 0 of 2, 1 failed |  |" in page(config, failed).splitlines()
    assert not failed.has(third), "it is tried again"
    there = gather(config, plan(config, tmp_path / "there", ANYWHERE), failed)
    assert there == failed, "another machine is told"
    (third.folder / "done.json").write_text((next(tmp_path.glob("first-0-train-*")) / "done.json").read_text())
    again = gather(config, plan(config, tmp_path, ANYWHERE), failed)
    assert again.failed == []
    assert f"| third | {NOT_RUN} |  | 0 of 2 | 1.5 |" in page(config, again).splitlines()
    again.failed = [score.identity]
    assert f"| third | {FAILED} |  | 0 of 2, 1 failed | 1.5 |" in page(config, again).splitlines()
    lost = StudyResults(failed=[task.identity for task in plan(config, tmp_path, ANYWHERE) if task.kind == "train"])
    lines = page(config, lost).splitlines()
    assert f"| first | {FAILED} | {FAILED} | 0 of 2, 2 failed |  |" in lines
    assert f"| third | {NOT_RUN} |  | 0 of 2 |  |" in lines
    assert lines[-1] == "Nothing of this has been run to its end."


def test_a_difference_is_clear_where_its_interval_leaves_out_zero() -> None:
    these, those = {0: 3.0, 1: 3.1, 2: 3.2, 9: 8.0}, {0: 1.0, 1: 1.0, 2: 1.0, 7: 0.0}
    found = difference(these, those)
    assert found is not None
    assert (found.count, found.mean) == (3, pytest.approx(2.1))
    assert found.spread == pytest.approx(statistics.stdev([2.0, 2.1, 2.2]))
    assert found.clear  # 2.1 against 4.30 * 0.1 / sqrt(3)
    noisy = difference({0: 1.0, 1: 3.0, 2: 0.5}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert noisy is not None
    assert not noisy.clear  # 1.5 against 4.30 * 1.3 / sqrt(3)
    one = difference({0: 9.0}, {0: 0.0})
    assert one is not None
    assert not one.clear
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_a_page_takes_the_tables_in_their_place_alone(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- study one -->\nold\n<!-- end -->\nbetween\n<!-- study two -->\nkept\n<!-- end -->\n")
    put_into(file, "one", "new\nlines")
    assert dict(places_of(file)) == {"one": "new\nlines", "two": "kept"}
    assert file.read_text().startswith("before\n")
    file.write_text("<!-- study empty -->\n<!-- end -->\nkept\n<!-- study two -->\nkept\n<!-- end -->\n")
    put_into(file, "empty", "new")
    assert dict(places_of(file)) == {"empty": "new", "two": "kept"}
    with pytest.raises(ConfigError, match="no place '<!-- study three -->'"):
        put_into(file, "three", "x")


def test_the_study_that_the_page_begins_with_can_be_run(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "ladder.md").read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "mine.yaml").write_text(found[1])
    tasks = plan(read_study(tmp_path / "mine.yaml", []), tmp_path, {"photos": Path("/data/photos")})
    assert len(tasks) == 2 * 3 * 2 + 1, "a training and a score of two rows and three seeds, and the untrained one's"
    require_runnable(tasks)


def test_pages_show_what_the_recorded_results_say() -> None:
    """Tables of docs/ are those of the JSON files beside them, whose every number is of the study as it is shipped."""
    shown = {name: text for file in sorted((ROOT / "docs").glob("*.md")) for name, text in places_of(file)}
    recorded = {file.stem for file in STUDIES if (ROOT / "docs" / f"{file.stem}.json").exists()}
    assert recorded <= shown.keys()
    for name, text in shown.items():
        config = read_study(ROOT / "configs" / "studies" / f"{name}.yaml", [])
        file = ROOT / "docs" / f"{name}.json"
        results = read(file) if file.exists() else StudyResults()
        assert results == results.of(plan(config, ROOT, ANYWHERE))
        assert text == page(config, results)


def test_only_the_rungs_asked_for_and_those_they_begin_with(tmp_path: Path, capsys) -> None:
    arguments = [str(ROOT / "configs/studies/ladder_cpu.yaml"), str(tmp_path / "runs"), "--dry-run"]
    data = given_folders(tmp_path)
    assert script.main([*arguments, *data, "--only", "high_resolution", "--seeds", "0"]) == 0
    names = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert names[:2] == ["cyclic, seed 0: train", "high_resolution, seed 0: train"]
    assert all(name.startswith("high_resolution, seed 0") for name in names[1:])
    assert not (tmp_path / "runs").exists()
    assert script.main([*arguments, *data, "--only", "low_resolution"]) == 2
    assert "no such rung; there are dinov2, " in capsys.readouterr().err
    assert script.main([*arguments, "--data", "imagenette=/not/there"]) == 2
    assert "give NAME=FOLDER of a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "cyclic", "--seeds", "7", "0"], "--seeds 7: cyclic has 0 1 2"),
        (["--only", "cyclic", "pixels", "--seeds", "1"], "--seeds 1: pixels has 0"),
        (["--seeds", "3"], "the study has 0 1 2"),
        (["seeds=[]"], "seeds=[]: give one or more"),
        (["train=[steps=-6]"], "rung dinov2, train: steps=-6"),
        (["--data", "imagenette=FOLDER/train"], "'data.path={imagenette}/train' needs 'train' in it"),
    ],
)
def test_what_would_run_nothing_or_fail_is_refused_in_a_dry_run(
    arguments: list[str], says: str, tmp_path: Path, capsys
) -> None:
    study = [
        str(ROOT / "configs/studies/ladder_cpu.yaml"),
        str(tmp_path / "runs"),
        "--dry-run",
        *given_folders(tmp_path),
    ]
    assert script.main([*study, *(text.replace("FOLDER", str(tmp_path)) for text in arguments)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--minutes", "-1"], ["--minutes", "nan"]])
def test_no_process_and_less_than_no_time_are_refused(wrong: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        script.parse_arguments(["study.yaml", "runs", *wrong])
    assert stop.value.code == 2
    assert " ".join(wrong) in capsys.readouterr().err


def test_a_study_that_is_not_there_and_a_folder_under_another_name_are_told_with_what_there_is(
    tmp_path: Path, capsys
) -> None:
    assert script.main(["ladder_cpu", str(tmp_path / "runs")]) == 2
    assert "study ladder_cpu is no file; shipped are " in (said := capsys.readouterr().err)
    assert "configs/studies/ladder_cpu.yaml" in said
    study = [str(ROOT / "configs/studies/ladder_cpu.yaml"), str(tmp_path / "runs")]
    assert script.main([*study, f"--data=imagenete={tmp_path}"]) == 2
    assert "give --data imagenette=FOLDER, besides imagenete" in capsys.readouterr().err


def test_parts_of_folders_are_found_wherever_they_stand_in_a_text(tmp_path: Path) -> None:
    given_folders(tmp_path)
    data = {"a": tmp_path, "b": tmp_path / "train"}
    mixture = "data.parts=[{{source: folder, path: {}}}, {{source: tars, path: {{b}}}}]".format
    require_parts(["x={a}", "folder:{b}", "x={other}/none", mixture("{a}/train"), "x={a}/train,{a}/val"], data)
    with pytest.raises(ConfigError, match="needs 'none' in it"):
        require_parts([mixture("{a}/none")], data)


@pytest.mark.parametrize(("study", "folder_of"), [("rates_cpu", "choices_cpu"), ("rasa_cpu", "recipe")])
def test_trainings_that_two_studies_share_are_the_same_tasks(study: str, folder_of: str, tmp_path: Path) -> None:
    """Their comments promise that what the other has trained in the same folder is found."""
    tasks = {
        name: {
            task.folder
            for task in plan(read_study(ROOT / f"configs/studies/{name}.yaml", []), tmp_path, ANYWHERE)
            if task.kind == "train"
        }
        for name in (study, folder_of)
    }
    shared = {"rates_cpu": {"recipe", "lr_5e4", "batch_32"}, "rasa_cpu": {"trained"}}[study]
    assert {folder.name.partition("-")[0] for folder in tasks[study] & tasks[folder_of]} == shared


def test_a_page_without_a_place_or_results_without_a_folder_are_refused_before_anything_runs(
    tmp_path: Path, capsys
) -> None:
    (tmp_path / "page.md").write_text("no place\n")
    arguments = [str(ROOT / "configs/studies/ladder_cpu.yaml"), str(tmp_path / "runs")]
    data = given_folders(tmp_path)
    for page_file, says in (("page.md", "no place '<!-- study ladder_cpu -->'"), ("none.md", "none.md")):
        assert script.main([*arguments, *data, "--page", str(tmp_path / page_file)]) == 2
        assert says in capsys.readouterr().err
    assert script.main([*arguments, *data, "--results", str(tmp_path / "none" / "x.json")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    in_the_way = [arguments[0], str(tmp_path / "page.md"), *data]
    assert script.main(in_the_way) == 2
    assert f"error: FOLDER {tmp_path / 'page.md'} can't be made" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes, four images each, in two splits."""
    names = [f"{split}/{kind}/{split}_{n}.png" for split in ("train", "val") for kind in "ab" for n in "1234"]
    for number, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.mark.slow
def test_a_study_from_training_to_picture(tmp_path: Path, labelled: Path, capsys) -> None:
    asked = ["knn", "--data", "folder:{imagenette}", "--slice", "d,d/2", "ks=[1]", "size=56", "resize=56"]
    content = {
        "title": "mine",
        "config": str(write_tiny(tmp_path / "tiny.yaml", labelled / "train", "steps=2")),
        "rungs": {"plain": {"train": []}, "untrained": {"model": "untrained:{after}", "after": "plain"}},
        "scores": {"knn": asked},
        "columns": {"knn": {"label": "k-NN", "score": "knn", "metric": "top1", "settings": {"k": 1, "voting": "soft"}}},
        "curves": [{"title": "by slice", "column": "knn", "rungs": ["plain", "untrained"]}],
    }
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(content))
    command = [str(file), str(tmp_path / "runs"), "--data", f"imagenette={labelled}"]
    assert script.main(command) == 0
    assert NOT_RUN not in capsys.readouterr().out
    found = read(tmp_path / "runs" / "mine.json")
    for rung in ("plain", "untrained"):
        assert found.by_slice(rung, "knn")[0].keys() == {"d", "d/2"}
    assert len(found.places) == 1
    assert found.places[0]["imagenette"].startswith("16 files, ")
    assert (tmp_path / "runs" / "mine.png").stat().st_size > 10_000
    assert script.main(command) == 0
    assert "begins" not in capsys.readouterr().err
    shutil.rmtree(next((tmp_path / "runs").glob("untrained-0-knn-*")))
    assert script.main([*command, "--only", "untrained"]) == 0
    assert "[1/2] untrained, seed 0: knn: begins" in capsys.readouterr().err, "its training is finished"
