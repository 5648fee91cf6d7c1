"""`python -m franca.train`: what a person sees, and the exit status that a script sees."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from franca.metrics import read_metrics
from franca.train import step
from franca.train.__main__ import main
from franca.train.config import load_config
from franca.train.quantities import loss_values
from franca.train.trainer import Trainer
from tests.tiny import write_tiny
from tests.warm import Command, start, wait

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "franca.train"]


def draw_images(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (40, 40), (40 * number, 99, 255 - 40 * number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with tiny.yaml, images in two classes, and a place for the run."""
    for label in ("cats", "dogs"):
        draw_images(tmp_path / "images" / label)
    settings = ("steps=3", "device=cpu", "model.depth=2", f"output={tmp_path / 'run'}")
    write_tiny(tmp_path / "tiny.yaml", tmp_path / "images", *settings)
    return tmp_path


@pytest.fixture
def run(place: Path) -> Callable[..., int]:
    """`run("key=value", …)`: the command in this process; its exit status."""
    return lambda *arguments: main(["--config", str(place / "tiny.yaml"), *arguments])


def test_help_is_a_page_to_work_from() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "examples:" in done.stdout
    shown = re.findall(r"--config (\S+\.yaml)", done.stdout)
    assert shown
    for file in shown:
        assert (ROOT / file).is_file(), f"--help shows {file}"
    for words in ("--dry-run", "key=value", "continues a run that was stopped"):
        assert words in done.stdout


def test_a_run_from_the_command_line_to_its_files(run: Callable[..., int], place: Path) -> None:
    assert run("steps=2", "evaluation.every=2", "evaluation.image_size=28", "evaluation.ks=[1]") == 0
    lines = read_metrics(place / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert any("knn_cls@1" in line for line in lines)
    assert (place / "run" / "teacher.pth").is_file()
    assert (place / "run" / "checkpoints" / "step_0000002").is_dir()


def test_a_dry_run_shows_everything_and_does_nothing(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("steps=7", "--dry-run", "accumulate=3", "data.path=/no/such/folder", "optimizer.lr_scaling=linear") == 0
    said = capsys.readouterr().out
    text, _, facts = said.partition("\nparameters: ")
    (place / "shown.yaml").write_text(text)
    overrides = ["steps=7", "accumulate=3", "data.path=/no/such/folder", "optimizer.lr_scaling=linear"]
    assert asdict(load_config(place / "shown.yaml")) == asdict(load_config(place / "tiny.yaml", overrides))
    assert re.match(r"backbone \d+\.\d\d M, dino_head \d+\.\d\d M, ibot_head \d+\.\d\d M\n", facts)
    assert "effective batch 12, peak lr 1.172e-05, 84 images" in facts
    assert "WARNING: data.path='/no/such/folder' is neither a folder nor a file here" in facts
    assert facts.count("WARNING") == 1
    assert not (place / "run").exists()


def test_a_dry_run_names_every_folder_that_is_not_there(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = (
        f"data.parts=[{{source: folder, path: {place}}}, {{source: tars, path: /no/tars}}, {{source: photographs}}]"
    )
    assert run("--dry-run", "data.source=mixture", mixture, "evaluation.train=/no/a", "evaluation.test=/no/b") == 0
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert [line.split()[1] for line in missing] == ["data.parts[1].path='/no/tars'"], "nothing is evaluated"
    assert (
        run("--dry-run", "data.path=''", "evaluation.every=1", "evaluation.train=/no/a", "evaluation.test=/no/b") == 0
    )
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert [line.split("=")[0] for line in missing] == [
        "WARNING: data.path",
        "WARNING: evaluation.train",
        "WARNING: evaluation.test",
    ]


def test_a_dry_run_of_a_giant_takes_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.arch=vit_giant2", "--dry-run"]) == 0
    assert "backbone 1134.77 M" in capsys.readouterr().out


def broken_folder(place: Path) -> None:
    (place / "broken").mkdir()
    for number in range(3):
        (place / "broken" / f"{number}.jpg").write_bytes(b"no image")


def mostly_broken_folder(place: Path) -> None:
    draw_images(place / "mostly", 2)
    for number in range(9):
        (place / "mostly" / f"x{number}.jpg").write_bytes(b"no image")


def nothing(place: Path) -> None:
    """No preparation."""


def empty_folder(place: Path) -> None:
    (place / "empty").mkdir()


def other_classes(place: Path) -> None:
    for label in ("cats", "birds"):
        draw_images(place / "others" / label)


def foreign_files(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "thesis.tex").write_text("important")


def no_wandb(place: Path) -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]


EVALUATION = ("evaluation.every=1", "evaluation.image_size=28")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (nothing, ["stpes=3"], r"'stpes' not in .* Did you mean: 'steps'"),
        (nothing, ["steps=many"], r"command line \(key steps\).*'many'"),
        (nothing, ["optimizer.lr=-1"], r"optimizer\.lr=-1.0 must be above 0"),
        (nothing, ["data.crops.global_size=50"], r"global_size=50 is no multiple of model.patch_size=14; try 56"),
        (nothing, ["steps"], r"'steps' is not of the form key=value"),
        (nothing, ["heads.nesting=[0.3]"], r"model, heads: nesting holds 0\.3"),
        (nothing, ["device=nonsense"], r"device='nonsense' can't be used here"),
        (nothing, ["data.path={place}/missing"], r"data\.path='.*missing' does not exist"),
        (empty_folder, ["data.path={place}/empty"], r"data\.path='.*empty' holds no image"),
        (broken_folder, ["data.path={place}/broken"], r"none of the 3 tried can be read: 0\.jpg"),
        (
            mostly_broken_folder,
            ["data.path={place}/mostly"],
            r"failed \(\d+\.\d\d%\), more than data\.max_broken_share=0\.1",
        ),
        (nothing, ["data.source=photographs", "data.path=middle"], r"data: data\.path='middle'.*train, test, all"),
        (nothing, [*EVALUATION, "evaluation.ks=[99]"], r"evaluation: k=\[99\] with 6 training images"),
        (
            other_classes,
            [*EVALUATION, "evaluation.train={place}/images", "evaluation.test={place}/others"],
            r"evaluation: .*different classes.*birds, dogs",
        ),
        (foreign_files, [], r"output='.*run' holds files that no run of franca\.train made"),
        (nothing, ["output={place}/tiny.yaml"], r"output='.*tiny\.yaml' can't be written"),
        (no_wandb, ["log.wandb_project=mine"], r"log\.wandb_project=mine needs wandb: pip install"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    prepare: Callable[[Path], None],
    arguments: list[str],
    message: str,
    run: Callable[..., int],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that whatever a preparation leaves there goes with the test
    monkeypatch.delitem(sys.modules, "wandb")
    prepare(place)
    assert run(*(argument.format(place=place) for argument in arguments)) == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in said


def test_a_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "no/such/file.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: config file 'no/such/file.yaml' does not exist; the shipped ones lie in configs/\n"
    )


def test_the_folder_of_another_run_is_refused_and_left_as_it_is(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    files = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")}
    assert run("optimizer.lr=0.5") == 2
    assert "optimizer.lr: there 0.001, here 0.5" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")} == files


def test_a_checkpoint_of_another_architecture_is_refused_by_tensor(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    recorded = place / "run" / "config.yaml"
    recorded.write_text(recorded.read_text().replace("depth: 2", "depth: 3"))
    assert run("model.depth=3") == 2
    said = capsys.readouterr().err
    assert "is of another architecture than this configuration" in said
    assert re.search(r"backbone\.blocks\.2\.\S+: there absent, here \(", said)


def test_unlabelled_images_switch_online_evaluation_off(
    run: Callable[..., int], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("steps=2", f"data.path={place / 'images' / 'cats'}", *EVALUATION) == 0
    assert "online k-NN is off: the images carry no labels" in caplog.text
    assert not any("knn" in name for line in read_metrics(place / "run" / "metrics.jsonl") for name in line)


def test_folders_of_the_evaluation_are_named_by_their_own_keys(
    run: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, nowhere = place / "images", place / "nowhere"
    for key in ("train", "test"):
        folders = {"train": images, "test": images} | {key: nowhere}
        assert run("steps=2", *EVALUATION, *(f"evaluation.{name}={path}" for name, path in folders.items())) == 2
        assert f"error: evaluation.{key}='{nowhere}' does not exist; name a folder" in capsys.readouterr().err


def test_an_evaluation_on_its_own_memory_is_warned_of(
    run: Callable[..., int], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = place / "images"
    folders = (f"evaluation.train={images}", f"evaluation.test={images}/", "evaluation.ks=[1]")
    assert run("steps=2", *EVALUATION, *folders) == 0
    assert "each image finds itself, k-NN says nothing" in caplog.text


def test_half_of_torchruns_variables_is_an_error_of_one_line(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert run() == 2
    assert capsys.readouterr().err == (
        "error: the launcher's variables: RANK and WORLD_SIZE are set, but not MASTER_ADDR: torchrun sets all of them\n"
    )


def test_endless_nan_is_an_error_with_advice(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "loss_values", lambda report: loss_values(report) * torch.nan)
    assert run("recovery.max_skips=1", "recovery.max_rollbacks=1") == 2
    assert re.search(r"error: step 1: loss, .* not finite .*Lower optimizer\.lr", capsys.readouterr().err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_status_and_a_way_on(
    number: signal.Signals, status: int, place: Path
) -> None:
    """A process of its own, signalled by another, as a scheduler or a person does it."""
    command = Command("franca.train", ["--config", str(place / "tiny.yaml"), "steps=100000", "checkpoint.every=100000"])
    log = place / "stderr.txt"
    process = start(command, folder=ROOT, stdout=place / "stdout.txt", stderr=log)
    metrics = place / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not read_metrics(metrics) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert wait(process, timeout=60) == status, log.read_text()
    said = log.read_text()
    found = re.search(rf"stopped at step (\d+) by {number.name}; the same command continues", said)
    assert found, said
    assert "Traceback" not in said
    (newest,) = (place / "run" / "checkpoints").glob(f"step_{int(found[1]):07d}")
    assert (newest / "manifest.json").is_file()


def test_a_second_signal_is_not_a_traceback(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impatient(*_: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr(Trainer, "step", impatient)
    assert run() == 130
    assert "stopped at once; the same command continues from the last saved state" in capsys.readouterr().err
