"""A tiny run, trained once, in a folder whose name must not leave this machine, and releases of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from franca.config import read_config
from franca.publish.release import Options, Release, publish
from franca.train.__main__ import main as train
from rasa.config import RasaConfig
from rasa.run import run as run_rasa

PRIVATE = "someones-own-folder"
SMALL = (
    *("steps=6", "precision=fp32", "device=cpu", "model.arch=vit_small", "model.depth=1", "model.embed_dim=32"),
    *("model.num_heads=2", "model.init_values=1.0", "heads.nesting=[0.5,1.0]", "heads.hidden_dim=16"),
    *("heads.dino.prototypes=16", "heads.dino.bottleneck_dim=8", "heads.ibot.prototypes=16"),
    *("heads.ibot.bottleneck_dim=8", "data.batch_size=4", "data.workers=0", "data.crops.global_size=56"),
    *("data.crops.local_size=28", "data.crops.local_count=1", "optimizer.warmup_steps=1", "teacher.momentum=0.9"),
    *("teacher.temperature_warmup_steps=3", "checkpoint.every=1", "checkpoint.keep_every=2", "monitor.every=2"),
    *("evaluation.every=3", "evaluation.ks=[1]", "evaluation.image_size=56", "log.every=1"),
)
STEPS = [0, 2, 4, 6]  # that checkpoint.keep_every keeps; step 5 is there too
RASA = (
    *("device=cpu", "precision=fp32", "rounds=2", "saturation=0.0", "data.size=56", "data.views=4"),
    *("data.batch_size=16", "data.workers=0", "evidence.crops=0"),
)


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The folder in which everything of the trainer's lies: `photos`, the run `small` and the RASA run `rasa`."""
    folder = tmp_path_factory.mktemp(PRIVATE)
    shutil.copytree(images, folder / "photos")
    assert train([f"output={folder / 'small'}", f"data.path={folder / 'photos'}", *SMALL]) == 0
    places = [f"output={folder / 'rasa'}", f"backbone.name={folder / 'small/teacher.pth'}"]
    run_rasa(read_config(RasaConfig, None, [*places, f"data.path={folder / 'photos'}", *RASA]))
    return folder


@pytest.fixture(scope="session")
def run(private: Path) -> Path:
    """The run; a test that changes it copies it."""
    return private / "small"


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(run, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def release(run: Path, tmp_path: Path) -> Callable[..., Release]:
    """`release(with_state=True, …, of=…, output=…, force=…)`: a release of the run."""

    def make(of: Path = run, output: str = "release", force: bool = False, **options: Any) -> Release:
        return publish(of, tmp_path / output, Options(**options), force, say=lambda text: None)

    return make


@pytest.fixture(scope="session")
def manifest() -> Callable[[Path], dict[str, Any]]:
    """The manifest of a release, its files by their paths."""

    def read(folder: Path) -> dict[str, Any]:
        content = json.loads((folder / "manifest.json").read_text())
        return content | {"files": {entry.pop("path"): entry for entry in content["files"]}}

    return read
