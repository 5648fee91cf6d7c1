"""`python -m franca.eval`: one way in, the same scores however many processes ask, words for what can't be asked."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from franca.eval.__main__ import main
from franca.eval.command import parse_slices
from franca.eval.errors import EvalError
from franca.eval.registry import PROTOCOLS
from franca.hub import save_teacher
from tests.distributed.ranks import command_on_ranks
from tests.warm import Command

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("circle", "square", "star")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose images tell their class by colour, with much noise."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 9), ("val", 5)):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = torch.randint(0, 200, (3, 40, 48), generator=generator, dtype=torch.uint8)
                pixels[number] += 55
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / split / name / f"{image}.png")
    return folder


@pytest.fixture
def teacher(model, tmp_path: Path) -> Path:
    file = tmp_path / "runs" / "mine" / "teacher.pth"
    file.parent.mkdir(parents=True)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    save_teacher(file, state, {"arch": "custom", "backbone": model.config, "mean": [0.5] * 3, "std": [0.25] * 3})
    return file


@pytest.fixture
def knn(teacher: Path, data: Path, tmp_path: Path) -> list[str]:
    """A whole command, small."""
    command = ["knn", "--model", str(teacher), "--data", f"folder:{data}", "--output", str(tmp_path / "results")]
    return [*command, "--precision", "fp32", "--slice", "d,d/2", "ks=[1,3]", "resize=28", "size=28"]


def scores_in(folder: Path) -> list[dict]:
    (file,) = folder.rglob("results.json")
    return json.loads(file.read_text())["scores"]


def test_scores_tell_where_they_come_from(knn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*knn, "voting=[soft]", "features=[cls]"]) == 0
    scores = scores_in(tmp_path / "results")
    asked = [(score["slice"], score["settings"]["k"]) for score in scores]
    assert asked == [("d", 1), ("d", 3), ("d/2", 1), ("d/2", 3)]
    for score in scores:
        assert score["protocol"] == "knn"
        assert (score["data"], score["split"], score["train_split"]) == ("folder", "val", "train")
        assert (score["resolution"], score["tta"], score["preset"]) == ("28", "none", "paper+")
        assert len(score["model_hash"]) == len(score["data_hash"]) == 64
        assert (score["images"], score["left_out"]) == (15, {"folder train": 0, "folder val": 0})
        assert score["stored_as"] == "fp16"
    assert len({score["train_hash"] for score in scores} | {scores[0]["data_hash"]}) == 2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("preset paper+; network in float32 on cpu, features in fp16; 15 images scored")
    assert printed[1] == "voting=soft features=cls, folder val, 28 px, augmentation none"
    assert printed[2].split() == ["metric", "slice", "k=1", "k=3"]
    rows = [[f"{score['value']:.1f}", "%"] for score in scores]
    assert [line.split() for line in printed[3:-1]] == [
        ["top1", "d", *rows[0], *rows[1]],
        ["top1", "d/2", *rows[2], *rows[3]],
    ]
    kept = next((tmp_path / "results").rglob("results.txt")).read_text().splitlines()
    assert kept[0] == printed[0]
    assert len([line for line in kept if line.startswith("top1")]) == len(scores)
    assert next((tmp_path / "results").rglob("scores_by_slice.png")).stat().st_size
    assert Path(printed[-1]).is_relative_to(tmp_path / "results")


def test_the_folder_of_a_run_is_its_teacher(knn: list[str], teacher: Path, tmp_path: Path) -> None:
    assert main(knn) == 0
    again = [str(teacher.parent) if word == str(teacher) else word for word in knn]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    values = [[score["value"] for score in scores_in(tmp_path / name)] for name in ("results", "again")]
    assert values[0] == values[1]


@pytest.mark.parametrize("options", [["--batch-size", "2"], ["--workers", "2"]])
def test_how_it_is_computed_changes_no_score(knn: list[str], options: list[str], tmp_path: Path) -> None:
    assert main([*knn, "--store", "fp32"]) == 0
    assert main([*knn, *options, "--store", "fp32", "--output", str(tmp_path / "other")]) == 0
    assert scores_in(tmp_path / "other") == scores_in(tmp_path / "results")


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(knn: list[str], tmp_path: Path) -> None:
    options = ["--store", "fp32", "--device", "cpu", "--output", str(tmp_path / "two")]
    log = tmp_path / "log.txt"
    assert command_on_ranks(2, Command("franca.eval", [*knn, *options]), ROOT, log) == [0, 0], log.read_text()
    assert log.read_text().count("metric ") == 1, "rank 0 alone speaks"
    assert main([*knn, "--store", "fp32"]) == 0
    assert scores_in(tmp_path / "two") == scores_in(tmp_path / "results")


def test_another_question_has_another_folder(knn: list[str], tmp_path: Path) -> None:
    for more in ([], [], ["ks=[2]"], ["--slice", "d/4"], ["--preset", "paper", "temperature=0.1"]):
        assert main([*knn, *more]) == 0
    assert len(list((tmp_path / "results").glob("knn-*"))) == 4
    assert len(list((tmp_path / "results" / "features").iterdir())) == 2  # train and val, extracted once


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--preset", "mine"], "--preset mine: knn has paper"),
        (["--slice", "half"], "--slice half: give d, d/2"),
        (["--slice", "d/64"], "--slice d/64: a feature of width 16 has no such slice"),
        (["--slice", "d/3"], "--slice d/3 of 16 features is no whole number of them (5.33): choose a divisor of 16"),
        (["temprature=1"], "temprature"),
        (["ks=[100]"], "27 training images"),
        (["--data", "folder:/nowhere"], "--data 'folder:/nowhere': /nowhere does not exist"),
        (["--train-data", "folder:/nowhere"], "--train-data 'folder:/nowhere': /nowhere does not exist"),
        (["--rasa", "/nowhere.pth"], "--rasa /nowhere.pth: no checkpoint at /nowhere.pth"),
        (["size=abc"], "could not be converted to Integer; give a whole number"),
        (["--data", "imagnet:/nowhere"], "imagenet"),
        (["--test-split", "evening"], "evening"),
        (["--test-split", "train"], "27 of split train are in split train too"),
        (["--model", "franca_vitz14"], "franca_vitz14"),
        (["resize=20", "size=30"], "crop must lie between 1 and resize"),
    ],
)
def test_what_cannot_be_asked_is_said(
    knn: list[str], change: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*knn, *change]) == 2
    assert words in capsys.readouterr().err


def test_all_slices_are_those_that_hold_a_feature(knn: list[str], tmp_path: Path) -> None:
    assert main([*knn, "--slice", "all", "voting=[soft]", "features=[cls]", "ks=[1]"]) == 0
    assert [score["slice"] for score in scores_in(tmp_path / "results")] == ["d", "d/2", "d/4", "d/8", "d/16"]


def test_slices_that_no_head_was_trained_on_are_named(
    knn: list[str], teacher: Path, model, caplog: pytest.LogCaptureFixture
) -> None:
    """Levels are known where the file holds, or describes, its heads."""
    caplog.set_level(logging.INFO)
    short = [*knn, "voting=[soft]", "features=[cls]", "ks=[1]", "--slice", "d/8"]
    assert main(short) == 0
    assert "in training" not in caplog.text
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    about = {"arch": "custom", "backbone": model.config, "heads": {"dino_head": {"nesting": [0.25, 0.5, 1.0]}}}
    save_teacher(teacher, state, about)
    assert main(short) == 0
    assert "slices without a head of their own in training (levels d, d/2, d/4): d/8" in caplog.text
    caplog.clear()
    assert main([*short[:-1], "d/7"]) == main([*short[:-1], "d/1000"]) == 2
    assert "in training" not in caplog.text, "what is refused isn't announced"


@pytest.mark.parametrize("words", [[], ["nothing"], ["knn"], ["compare"]])
def test_an_incomplete_command_says_what_is_missing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("name", PROTOCOLS)
def test_help_is_a_page_to_work_from(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It explains the protocol, lists every setting with its value, and says what a model may be."""
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    protocol = PROTOCOLS[name].load()
    assert PROTOCOLS[name].summary in " ".join(page.split())
    assert all(f"  {setting.name}=" in page for setting in fields(protocol.config))
    assert all(f"--preset {preset}: " in page for preset in protocol.presets)
    assert "timm:NAME" in page


def test_what_a_protocol_reads() -> None:
    assert [name for name, entry in PROTOCOLS.items() if not entry.trains] == [
        "overclustering",
        "position_bias",
        "pictures",
    ]
    assert {entry.kind for entry in PROTOCOLS.values()} == {"classification", "segmentation", "images"}


def test_slices_are_read_in_every_spelling() -> None:
    assert parse_slices([]) == (1,)
    assert parse_slices(["d/2", "1/4,d"]) == (2, 4, 1)
    assert parse_slices(["all", "d"]) == parse_slices(["d,all"]) == ()
    for wrong in ("d/0", "2", "d/x", ""):
        with pytest.raises(EvalError, match="--slice"):
            parse_slices([wrong])


def test_compare_shows_the_results_of_a_folder(
    knn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = ["pixels" if word.endswith("teacher.pth") else word for word in knn]
    assert main(knn) == main(pixels) == 0
    assert main(["compare", str(tmp_path / "results"), "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "2 models, 2 evaluations" in page
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
