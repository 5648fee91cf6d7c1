"""The model card says what the run recorded, and its code runs."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import franca
from franca.hub import load
from franca.hub.registry import SHORT_NAMES
from franca.metrics import read_metrics
from franca.publish.release import Release, data_name, public_config
from franca.train.config import load_config

Make = Callable[..., Release]
ROOT = Path(__file__).resolve().parents[2]


def card_of(done: Release) -> str:
    return (done.folder / "README.md").read_text()


def rows_of(done: Release) -> dict[str, str]:
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", card_of(done), re.MULTILINE)
    return dict(found)


def test_numbers_are_those_of_the_run(release: Make, run: Path) -> None:
    rows, lines = rows_of(release(licence="CC BY 4.0", data="twenty photographs")), read_metrics(run / "metrics.jsonl")
    losses, verdict = (next(line for line in reversed(lines) if name in line) for name in ("loss", "verdict"))
    scores = next(line for line in reversed(lines) if "knn_cls@1" in line)
    assert rows["data"] == "twenty photographs"
    assert rows["steps"] == "6 of 6 planned"
    assert rows["images seen"] == "24"
    assert rows["batch"] == "4 images (4 × 1 accumulated)"
    assert rows["loss"].startswith(f"{losses['loss']:.4g} (crop_local {losses['crop_local']:.4g}, ")
    assert verdict["verdict_reason"] in rows["the monitor's last verdict"]
    assert rows["k-NN accuracy"].startswith(f"class token, k = 1: {scores['knn_cls@1']:.1f} %, mean patch, k = 1: ")
    assert "split in two" in rows["k-NN protocol"]
    assert "images of 56 pixels" in rows["k-NN protocol"]
    model = franca.load_model(checkpoint=run / "teacher.pth")
    assert rows["parameters"] == f"{sum(p.numel() for p in model.parameters()):,} (backbone)"
    assert f"franca {franca.__version__}" in rows["versions"]


def test_what_is_not_known_is_not_stated(release: Make) -> None:
    done = release(steps="0")
    rows = rows_of(done)
    assert rows["steps"] == "0 of 6 planned"
    for unknown in ("loss", "the monitor's last verdict", "k-NN accuracy", "images in the data"):
        assert rows[unknown] == "not stated"
    assert "k-NN protocol" not in rows
    assert "**Licence:** not stated" in card_of(done)
    for absent in ("RASA", "Continue the run", "torch.hub", "None", "nan"):
        assert absent not in card_of(done)
    assert "**Licence:** CC0" in card_of(release(steps="0", licence="CC0", output="other"))


def test_a_number_that_was_not_finite_is_no_number(release: Make, own_run: Path) -> None:
    metrics = own_run / "metrics.jsonl"
    metrics.write_text(re.sub(r'"(loss|koleo)": [^,]+', r'"\1": null', metrics.read_text()))
    assert rows_of(release(of=own_run))["loss"].startswith("not stated (crop_local ")


def test_the_code_on_the_card_runs(release: Make, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "backbone_sizes", lambda: dict.fromkeys(SHORT_NAMES, (32, 1, 2)))
    done = release(rasa=private / "rasa", with_state=True)
    blocks = re.findall(r"```python\n(.*?)```", card_of(done), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(done.folder)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace("/path/to/franca", os.fspath(ROOT)), names)
        assert names["model"].embed_dim == 32
        assert names["model"].rasa_head is not None


def test_files_and_steps_on_the_card_are_those_of_the_release(release: Make, private: Path) -> None:
    done = release(rasa=private / "rasa", with_state=True, steps="2,6")
    named = set(re.findall(r"`([\w./]+)`", " ".join(key for key in rows_of(done) if key.startswith("`"))))
    assert named | {"README.md"} == {path.name + "/" * path.is_dir() for path in done.folder.iterdir()}
    steps = re.findall(r"^\| (\d+) \| [\d,]+ \| `[0-9a-f]{64}` \|$", card_of(done), re.MULTILINE)
    assert steps == ["2", "6"]


def test_parts_of_a_mixture_are_called_by_their_folders() -> None:
    parts = "[{source: folder, path: /x/imagenet, weight: 3}, {source: tars, path: /y/ade20k, weight: 1}]"
    config = load_config(overrides=["data.source=mixture", f"data.parts={parts}", "output=/z/runs/mixed"])
    assert data_name(config) == "mixture of imagenet, ade20k"
    text = public_config(config, data_name(config), "mixed")
    for private in ("/x", "/y", "/z"):
        assert private not in text
    assert "path: ade20k" in text
