"""What a release holds: the run's own weights, lists that agree with the files, and nothing of the machine."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import franca
from franca.hub import CheckpointError, describe
from franca.metrics import read_metrics
from franca.publish.errors import PublishError
from franca.publish.release import Release
from franca.train.__main__ import main as train
from franca.train.config import load_config
from tests.publish.conftest import PRIVATE, SMALL, STEPS

Make = Callable[..., Release]
ALWAYS = {"README.md", "SHA256SUMS", "config.yaml", "manifest.json", "metrics.jsonl", "teacher.pth"}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("steps", "step", "others"),
    [("all", 6, [0, 2, 4]), ("last", 6, []), ("2", 2, []), ("4,0,4", 4, [0]), ("5,6", 6, [5])],
)
def test_the_newest_of_the_chosen_steps_is_the_release(
    steps: str, step: int, others: list[int], release: Make, run: Path, tmp_path: Path
) -> None:
    done = release(steps=steps)
    folder = tmp_path / "release"
    assert done.step == step
    assert files_in(folder) == ALWAYS | {f"checkpoints/step_{other:07d}/teacher.pth" for other in others}
    for made, place in [(step, "teacher.pth"), *((o, f"checkpoints/step_{o:07d}/teacher.pth") for o in others)]:
        ours, theirs = describe(folder / place), describe(run / f"checkpoints/step_{made:07d}/teacher.pth")
        assert ours["hash"] == theirs["hash"]
        assert ours["step"] == made
        assert ours["trained_with"] == {name: theirs[name] for name in ("franca", "torch", "python")}
    assert max(line["step"] for line in read_metrics(folder / "metrics.jsonl")) == step


def test_the_released_teacher_gives_the_features_of_the_runs_own(release: Make, run: Path) -> None:
    folder = release(steps="last").folder
    images = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        features = [
            franca.load_model(checkpoint=place).forward_features(images)["x_norm_patchtokens"]
            for place in (folder, folder / "teacher.pth", run / "teacher.pth")
        ]
    assert torch.equal(features[0], features[2])
    assert torch.equal(features[1], features[2])


def test_the_manifest_says_of_each_file_what_it_is(
    release: Make, manifest: Callable[[Path], dict[str, Any]], private: Path, run: Path
) -> None:
    done = release(with_state=True, rasa=private / "rasa", licence="CC0", name="tiny one")
    content = manifest(done.folder)
    said = {key: content[key] for key in ("name", "step", "images_seen", "config", "licence")}
    assert said == {"name": "tiny one", "step": 6, "images_seen": 24, "config": "config.yaml", "licence": "CC0"}
    assert content["files"].keys() == files_in(done.folder) - {"manifest.json", "SHA256SUMS"}
    for path, entry in content["files"].items():
        assert entry["bytes"] == (done.folder / path).stat().st_size
    for step in STEPS:
        of_step = {p: e for p, e in content["files"].items() if p.startswith(f"checkpoints/step_{step:07d}/")}
        assert len(of_step) == 4
        assert {(e["step"], e["images_seen"], e["config"]) for e in of_step.values()} == {
            (step, step * 4, "config.yaml")
        }
        teacher = of_step[f"checkpoints/step_{step:07d}/teacher.pth"]
        assert teacher["hash"] == describe(run / f"checkpoints/step_{step:07d}/teacher.pth")["hash"]
    assert content["files"]["teacher.pth"]["hash"] == describe(run / "teacher.pth")["hash"]
    assert content["files"]["teacher_rasa.pth"]["hash"] == describe(private / "rasa/rasa.pth")["hash"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_accepts_the_list_and_notices_a_changed_file(release: Make, own_run: Path) -> None:
    folder = release(of=own_run, with_state=True).folder
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == files_in(folder) - {"SHA256SUMS"}
    command = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    with next(folder.rglob("*.distcp")).open("r+b") as file:
        file.write(b"?")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize("data", ["", "Photographs of mine"])
def test_nothing_of_the_machine_is_in_any_file(data: str, release: Make, private: Path) -> None:
    folder = release(with_state=True, rasa=private / "rasa", data=data).folder
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PRIVATE.encode() not in content, path
            assert not data or b"photos" not in content, path
    assert describe(folder / "teacher.pth")["data"] == (data or "photos")
    assert load_config(folder / "config.yaml").data.path == (data or "photos")


def test_a_run_that_began_with_a_file_says_which_and_not_where_it_lay(
    release: Make, private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its release continues without that file."""
    begun = private / "begun"
    options = [*SMALL, f"data.path={private / 'photos'}", f"init_from={private / 'small'}", "evaluation.every=0"]
    assert train([*options, f"output={begun}"]) == 0
    folder = release(of=begun, with_state=True, steps="2,4").folder
    assert not [path for path in folder.rglob("*") if path.is_file() and PRIVATE.encode() in path.read_bytes()]
    told = describe(folder / "teacher.pth")["initialised_from"]
    assert (told["name"], told["hash"]) == ("small", describe(private / "small")["hash"])
    assert f"| began with | small, hash `{told['hash']}` |" in (folder / "README.md").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    place = [f"output={copy}", f"data.path={private / 'photos'}"]
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["path"] = str(private / "photos")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(["--config", str(copy / "config.yaml"), *place]) == 0
    assert describe(copy / "teacher.pth")["hash"] == describe(begun / "teacher.pth")["hash"]


def test_a_released_state_continues_to_the_run_s_own_end(
    release: Make, private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = release(with_state=True, steps="2,4").folder
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["path"] = str(private / "photos")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(["--config", str(copy / "config.yaml"), f"output={copy}"]) == 0
    assert "continuing from step 4" in capsys.readouterr().out
    assert describe(copy / "teacher.pth")["hash"] == describe(private / "small/teacher.pth")["hash"]
    lines = [
        [line["loss"] for line in read_metrics(at / "metrics.jsonl") if "loss" in line]
        for at in (copy, private / "small")
    ]
    assert lines[0] == lines[1]
    assert describe(folder / "teacher.pth")["step"] == 4, "the release itself is as it was"


def test_a_damaged_state_is_passed_over_and_a_damaged_teacher_refused(release: Make, own_run: Path) -> None:
    newest = own_run / "checkpoints/step_0000006"
    (newest / "__0_0.distcp").write_bytes(b"cut")
    done = release(of=own_run, steps="last")
    assert done.step == 5
    assert "the run did not come to its end: step 5 of 6" in done.notes
    teacher = own_run / "checkpoints/step_0000005/teacher.pth"
    content = torch.load(teacher, weights_only=True)
    content["teacher"]["backbone.cls_token"] += 1
    torch.save(content, teacher)
    sizes = {file.name: file.stat().st_size for file in teacher.parent.iterdir() if file.name != "manifest.json"}
    (teacher.parent / "manifest.json").write_text(json.dumps({"step": 5, "files": sizes}))
    with pytest.raises(CheckpointError, match="is damaged"):
        release(of=own_run, steps="5", output="other")
    assert not (own_run.parent / "other").exists()


def test_the_head_of_a_rasa_run_goes_with_its_teacher_only(release: Make, private: Path, tmp_path: Path) -> None:
    folder = release(rasa=private / "rasa", steps="last").folder
    model = franca.load_model(checkpoint=folder, use_rasa_head=True)
    expected = torch.load(private / "rasa/rasa.pth", weights_only=True)
    torch.testing.assert_close(model.rasa_head.state_dict(), expected, rtol=0, atol=0)
    with pytest.raises(PublishError, match="belongs to other weights than this teacher"):
        release(rasa=private / "rasa", steps="4", output="other")
    with pytest.raises(PublishError, match="finished RASA run"):
        release(rasa=private / "small", output="other")
    assert not (tmp_path / "other").exists()
